"""Makes text from clients fit for a log line: one line stays one line, and secrets are left out."""

import re

_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, line separators, invisible characters, those that change the direction of text, and
halves of surrogate pairs, which UTF-8 cannot encode."""

_SECRET = re.compile(
    r"((?:bearer|basic)\s+|(?:api[_-]?key|access[_-]?token|token|password|secret)[\"']?\s*[=:]\s*[\"']?)"
    r"(?!<)[A-Za-z0-9._~+/-]{8,}=*",
    re.IGNORECASE,
)

REDACTED = "[redacted]"


def escape(text: str) -> str:
    """Replace what could end a line, hide text or move the cursor by Python's escapes."""
    return _UNFIT.sub(_python_escape, text)


def escape_json(text: str) -> str:
    """Replace the same in a JSON document, where it can be only inside strings, by JSON's escapes."""
    return _UNFIT.sub(_json_escape, text)


def redact(text: str) -> str:
    """Replace credentials: what follows `Bearer`, `api_key=`, `password:` and the like."""
    return _SECRET.sub(rf"\1{REDACTED}", text)


def _python_escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _json_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
