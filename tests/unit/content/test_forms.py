import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content.forms import read_files
from service.errors import InvalidInput, RequestError

KIND = "multipart/form-data; boundary=X"


def part(*headers: str, body: bytes = b"content") -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return b"--X\r\n" + lines.encode("latin-1") + b"\r\n" + body + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--X--\r\n"


DISPOSITION = "Content-Disposition: form-data; name=images"


@pytest.mark.parametrize(
    "name",
    [
        '; filename="a.png"',
        "; filename=a.png",
        "; filename*=UTF-8''%e2%82%ac.png",
        "; filename* = utf-8''a.png",
        "; filename*=klingon''a.png",
        "; filename=\"a.png\"; filename*=UTF-8''%zz",
        '; FileName="a.png"',
        '; filename=""',
    ],
)
def test_a_part_with_any_file_name_is_a_file(name: str) -> None:
    (file,) = read_files(KIND, form(part(DISPOSITION + name, "Content-Type: image/PNG; x=y")), 4)
    assert (file.kind, file.content) == ("image/png", b"content")


@pytest.mark.parametrize("charset", ["undefined", "punycode", "utf-16", "rot13", "", "\xff", "idna"])
def test_a_charset_is_ignored(charset: str) -> None:
    body = form(
        part(f'{DISPOSITION}; filename="\xff\xfe.png"', f"Content-Type: image/png; charset={charset}")
    )
    for kind in (KIND, f"{KIND}; charset={charset}", f"multipart/form-data; charset={charset}; boundary=X"):
        assert read_files(kind, body, 4)[0].kind == "image/png"


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("multipart/form-data", form(part(DISPOSITION)), "has no boundary"),
        (f"{KIND}{'x' * 300}", form(part(DISPOSITION)), "form cannot be read"),
        (KIND, b"", "form ends early"),
        (KIND, form(part(f"{DISPOSITION}; filename=a"))[:-9], "form ends early"),
        (KIND, form(), "form has 0 files|form cannot be read|form ends early"),
        (KIND, form(part(DISPOSITION)), r"form has 0 files and the fields \['images'\], expected only files"),
        (KIND, form(part("X: y")), r"form has 0 files and the fields \[''\]"),
        (KIND, form(*[part(f"{DISPOSITION}; filename=a")] * 30), "it has over 4 files"),
        (KIND, form(part(f"{DISPOSITION}; filename=a", f"X: {'y' * 100_000}")), "form cannot be read"),
        (KIND, form(part(*["X: y"] * 1000)), "form cannot be read"),
    ],
)
def test_a_wrong_form_says_what_was_seen(kind: str, body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_files(kind, body, 4)


@given(
    st.binary(max_size=60),
    st.integers(0, 120),
    st.integers(0, 20),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
def test_any_form_gives_files_or_a_request_error(noise: bytes, at: int, cut: int, parameter: str) -> None:
    body = form(part(f'{DISPOSITION}; filename="a"', "Content-Type: image/png"), part(DISPOSITION))
    for kind in (KIND, f"{KIND}; {parameter}", f"multipart/form-data; {parameter}"):
        try:
            assert read_files(kind, body[:at] + noise + body[at + cut :], 4)
        except RequestError:
            continue
