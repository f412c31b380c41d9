"""Who is let in, and what becomes of the keys when their file changes."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.http.api_keys import ApiKeys

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
    with pytest.raises(SettingsError, match="can't decode byte"):
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
    assert FIRST.encode() not in b"".join(keys._digests)
