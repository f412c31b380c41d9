"""Values as error messages show them: cut short, and bounded in depth."""

from reprlib import Repr
from typing import Any

_CHARS = 40


class _Brief(Repr):
    """`repr` of a value nested 1,000 deep raises RecursionError; this one stops after a few levels."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict = 4, 8, 8
        self.maxstring = self.maxother = self.maxlong = 2 * _CHARS


def shown(value: Any) -> str:
    """Return what `repr` returns, in at most 40 characters."""
    text = _Brief().repr(value)
    return text if len(text) <= _CHARS else f"{text[: _CHARS - 3]}..."
