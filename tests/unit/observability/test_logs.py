"""What clients send, in lines that collectors and people read."""

import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.logs import FIELDS, JsonFormatter, TextFormatter

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u200e\u200f\u2066-\u2069]")
KEY = "a-secret-key-0123456789"

NASTY = st.text(
    st.sampled_from("\r\n\x1b\x85\u2028\u2029\x0b\x0c\x1c\u202e\ufeff\x00\ud800") | st.characters(),
    max_size=40,
)


def record(message: str, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    made = logging.LogRecord("inkserve", logging.ERROR, "a.py", 1, "%s", (message,), info)
    setattr(made, FIELDS, fields)
    return made


@given(NASTY, NASTY)
def test_a_json_line_is_one_line_whatever_is_logged(message: str, value: str) -> None:
    line = JsonFormatter().format(record(message, ValueError(value), path=value))
    assert len(line.splitlines()) == 1
    assert not CONTROL.search(line)
    line.encode()
    parsed = json.loads(line)
    assert (parsed["message"], parsed["path"]) == (message, value)


@given(NASTY, NASTY)
def test_a_text_line_is_one_line_whatever_is_logged(message: str, value: str) -> None:
    line = TextFormatter().format(record(message, path=value))
    assert len(line.splitlines()) == 1
    assert not CONTROL.search(line)
    line.encode()


@given(NASTY)
def test_an_exception_cannot_begin_a_line_of_the_text_log(value: str) -> None:
    text = TextFormatter().format(record("failed", ValueError(f"x\n{value}\n2026-11-27 INFO forged")))
    first, *rest = text.splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") for line in rest)
    assert not CONTROL.search(text.replace("\n", ""))


def test_a_text_field_cannot_add_another() -> None:
    line = TextFormatter().format(record("answered", client='1.2.3.4 status=200 "x'))
    assert line.endswith(r'client="1.2.3.4 status=200 \"x"')


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"headers are [(b'authorization', b'bearer {KEY}==')]",
        f"GET /classify?api_key={KEY}&top_k=1",
        f'{{"access_token": "{KEY}"}}',
        f"ssl password={KEY}",
    ],
)
def test_a_credential_is_never_logged(text: str) -> None:
    made = record(text, RuntimeError(text), detail=text)
    line, plain = JsonFormatter().format(made), TextFormatter().format(made)
    assert plain.count("[redacted]") == 3
    assert KEY not in plain
    assert KEY not in line


def test_what_json_has_no_form_for_is_logged_as_text() -> None:
    line = json.loads(JsonFormatter().format(record("x", seen={1, 2}, count=1 << 70)))
    assert (line["seen"], line["count"]) == ("{1, 2}", 1 << 70)
