"""Who is let in, and what becomes of the keys when their file changes."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Forbidden, SettingsError, Unauthorized
from service.http.api_keys import MAX_FILE_BYTES, METRICS, ApiKeys, admit, is_open

FIRST, SECOND = "first-key-0123456789", "c2Vjb25kIGtleQ+/~._=="
OTHER = "third-key-0123456789"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "keys"
        path.write_text(text, "utf-8")
        return path

    return write


def bearer(key: str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"test"), (b"authorization", f"{scheme} {key}".encode())]


def permitted(keys: ApiKeys) -> set[str]:
    return {key for key in (FIRST, SECOND, OTHER) if keys.permits(bearer(key))}


@pytest.mark.parametrize(
    "text",
    [
        f"{FIRST}\n{SECOND}\n",
        f"{FIRST}\n{SECOND}",
        f"# of the web shop\n{FIRST}\n\n  # of the app\n\t{SECOND}  \n{FIRST}\n",
        f"{FIRST}\r\n{SECOND}\r\n",
    ],
)
def test_every_line_but_blanks_and_comments_is_a_key(write: Write, text: str) -> None:
    keys = ApiKeys.read(write(text))
    assert permitted(keys) == {FIRST, SECOND}
    assert not keys.permits(bearer("# of the web shop"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(write: Write, scheme: str) -> None:
    assert ApiKeys.read(write(FIRST)).permits(bearer(FIRST, scheme))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", FIRST.encode())],
        [(b"authorization", b"Bearer" + FIRST.encode())],
        bearer(FIRST, "Basic"),
        bearer(FIRST[:-1]),
        bearer(FIRST + "x"),
        bearer(FIRST.upper()),
        bearer(f"{FIRST} {SECOND}"),
        [(b"authorization", b"Bearer \xff\xfe" + FIRST.encode())],
        [(b"x-api-key", FIRST.encode())],
        [(b"proxy-authorization", b"Bearer " + FIRST.encode())],
        [*bearer(OTHER), *bearer(FIRST)],
        [*bearer(FIRST), *bearer(OTHER)],
    ],
)
def test_anything_but_one_right_key_is_refused(write: Write, headers: list[tuple[bytes, bytes]]) -> None:
    assert not ApiKeys.read(write(f"{FIRST}\n{SECOND}\n")).permits(headers)


BAD_FILES = [
    ("", "holds no API key, expected one per line"),
    ("\n  \n# nothing yet\n", "holds no API key, expected one per line"),
    (f"{FIRST}\n\nshort-key-15-ch\n", "line 3: API key has 15 characters, expected at least 16"),
    (f"{FIRST} two words\n", "line 1: API key has characters other than letters, digits"),
    ("schlüssel-0123456789\n", "line 1: API key has characters other"),
    (f"{FIRST} # of the web shop\n", "line 1: API key has characters other"),
    (f"shop:{FIRST}\n", "line 1 has 1 colons, expected KEY or NAME:SCOPES:KEY"),
    (f"shop:infer:{FIRST}:x\n", "line 1 has 3 colons"),
    (f"the shop:infer:{FIRST}\n", "line 1: the name is not"),
    (f":infer:{FIRST}\n", "line 1: the name is not"),
    (f"shop::{FIRST}\n", "line 1: a scope is unknown, expected some of admin, infer, metrics"),
    (f"shop:{FIRST}:infer\n", "line 1: a scope is unknown"),
    (f"shop:infer:{FIRST}\napp:infer:{FIRST}\n", "line 2: API key is there already"),
    ("sha256=00ff\n", "line 1: the digest has 4 characters, expected 64 hex digits"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_refused_without_showing_a_key(write: Write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError, match=message) as refused:
        ApiKeys.read(path)
    assert str(path) in str(refused.value)
    assert not any(word in str(refused.value) for word in (FIRST, "short-key", "schl"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read from .*/keys: .*No such file"):
        ApiKeys.read(tmp_path / "keys")
    with pytest.raises(SettingsError, match="Is a directory"):
        ApiKeys.read(tmp_path)
    (tmp_path / "keys").write_bytes(b"\xff" * 20)
    with pytest.raises(SettingsError, match="is not UTF-8, invalid start byte at byte 0"):
        ApiKeys.read(tmp_path / "keys")


def test_rereading_takes_new_keys_and_drops_old_ones(write: Write) -> None:
    keys = ApiKeys.read(write(f"{FIRST}\n"))
    write(f"{SECOND}\n{OTHER}\n")
    assert permitted(keys) == {FIRST}
    keys.reread()
    assert permitted(keys) == {SECOND, OTHER}


def test_rereading_follows_the_link_that_a_mounted_secret_is(tmp_path: Path) -> None:
    for name, key in (("..v1", FIRST), ("..v2", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "api-keys").write_text(key)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "api-keys").symlink_to("..data/api-keys")
    keys = ApiKeys.read(tmp_path / "api-keys")
    (tmp_path / "..new").symlink_to("..v2")
    (tmp_path / "..new").rename(tmp_path / "..data")  # as the kubelet does
    keys.reread()
    assert permitted(keys) == {SECOND}


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_rereading_a_bad_file_keeps_the_old_keys_and_says_why(
    write: Write, caplog: pytest.LogCaptureFixture, text: str, message: str
) -> None:
    keys = ApiKeys.read(write(f"{FIRST}\n{SECOND}\n"))
    write(text)
    with caplog.at_level(logging.ERROR):
        keys.reread()
    (line,) = caplog.messages
    assert line.startswith("the API keys were not reloaded: ")
    assert message in line
    assert permitted(keys) == {FIRST, SECOND}


def test_the_keys_themselves_are_not_kept(write: Write) -> None:
    keys = ApiKeys.read(write(FIRST))
    assert FIRST not in repr(vars(keys))
    assert FIRST.encode() not in b"".join(grant.digest for grant in keys._grants)


@pytest.mark.parametrize("text", [f"\ufeff{FIRST}\r\n{SECOND}\r\n", f"{FIRST}\r\n\r\n{SECOND}"])
def test_a_file_from_windows_is_read(write: Write, text: str) -> None:
    path = write("")
    path.write_bytes(text.encode())
    assert permitted(ApiKeys.read(path)) == {FIRST, SECOND}


def _fifo(path: Path) -> str:
    os.mkfifo(path)
    return "it is a FIFO, expected a file"


def _directory(path: Path) -> str:
    path.mkdir()
    return "Is a directory"


def _huge(path: Path) -> str:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    return "has more than 1048576 bytes"


def _device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "it is a device, expected a file"


def _loop(path: Path) -> str:
    path.symlink_to(path)
    return "Too many levels of symbolic links"


def _absent(path: Path) -> str:
    del path
    return "No such file"


NO_FILES = [_fifo, _directory, _huge, _device, _loop, _absent]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_of_keys_is_refused_at_once(tmp_path: Path, make: Callable[[Path], str]) -> None:
    message = make(tmp_path / "keys")
    with pytest.raises(SettingsError, match=message):
        ApiKeys.read(tmp_path / "keys")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_replaces_the_file_but_is_none_keeps_the_old_keys(
    write: Write, caplog: pytest.LogCaptureFixture, make: Callable[[Path], str]
) -> None:
    path = write(FIRST)
    keys = ApiKeys.read(path)
    path.unlink()
    message = make(path)
    keys.reread()
    assert len(caplog.messages) == 1
    assert message in caplog.messages[0]
    assert permitted(keys) == {FIRST}


SCOPED = f"""
{OTHER}
shop:infer:{FIRST}
operator:admin,metrics:sha256={hashlib.sha256(SECOND.encode()).hexdigest()}
"""


@pytest.mark.parametrize(
    ("path", "admitted"),
    [
        ("/classify", {FIRST, OTHER}),
        ("/models", {FIRST, OTHER}),
        ("/nothing", {FIRST, OTHER}),
        ("/v2/repository/models/cnn/load", {SECOND, OTHER}),
        ("/metrics", {SECOND, OTHER}),
    ],
)
def test_a_key_passes_only_where_its_scopes_allow(write: Write, path: str, admitted: set[str]) -> None:
    keys = ApiKeys.read(write(SCOPED))
    for key in (FIRST, SECOND, OTHER):
        name, error = admit(keys, path, bearer(key))
        assert (error is None) == (key in admitted)
        assert name == {FIRST: "shop", SECOND: "operator", OTHER: ""}[key]
        if error is not None:
            assert isinstance(error, Forbidden)
            assert key not in str(error)
    for headers in ([], bearer("unknown-0123456789")):
        name, error = admit(keys, path, headers)
        assert (name, type(error)) == ("", Unauthorized)


def test_metrics_are_open_until_a_line_names_their_scope(write: Write) -> None:
    assert is_open(METRICS, ApiKeys.read(write(f"{OTHER}\nshop:infer:{FIRST}\n")))
    assert not is_open(METRICS, ApiKeys.read(write(SCOPED)))
    assert all(is_open(path, ApiKeys.read(write(SCOPED))) for path in ("/v2/health/live", "/docs"))


def test_two_keys_of_one_name_are_valid_during_a_rotation(write: Write) -> None:
    keys = ApiKeys.read(write(f"shop:infer:{FIRST}\nshop:infer:{SECOND}\n"))
    assert permitted(keys) == {FIRST, SECOND}
    assert {found.name for key in (FIRST, SECOND) if (found := keys.find(bearer(key)))} == {"shop"}


@given(st.text(alphabet=st.sampled_from("ab:=,# \n\r\t\ufeff\u2028é\x00sha256=infer"), max_size=80))
def test_any_text_gives_keys_or_an_error_that_shows_none(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        path.write_text(f"{FIRST}{text}", "utf-8")
        message = ""
        try:
            ApiKeys.read(path)
        except SettingsError as error:
            message = str(error)
        assert FIRST not in message
