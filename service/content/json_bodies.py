"""JSON bodies: bounded before they are parsed, and split into short fields and rows.

Knows nothing of models. A parsed body can take 100 times the memory of its text, and orjson holds the GIL:
1.4 million keys in 14 MB took 14 s and 1.6 GB, a million empty lists 0.3 s.
"""

from dataclasses import dataclass
from typing import Any

import orjson
from pydantic_core import from_json

from service.content.brief import shown
from service.errors import InvalidInput, PayloadTooLarge

MAX_KEYS = 10_000
"""Requests have a handful of keys; `data:` URLs in strings also have a colon each."""

VALUES_PER_LIST = 16
"""A body may have one list or object for this many values: rows of 28 pixels need one for 28."""

MAX_FIELD_CHARS = 1024

ORJSON_BYTES = 16 * 1024
"""Larger bodies are read by pydantic's parser. orjson notes 16 bytes for each value besides: half a million
numbers take 13 MB with it, 4 MB without."""


@dataclass(frozen=True, slots=True)
class JsonNames:
    """The fields that a JSON body may have. rows: the one that holds rows.

    former: accepted too, but not listed in errors.
    bare: whether the body may also be the rows themselves, without an object around them.
    lists: fields that may be a list of scalars, too.
    """

    known: tuple[str, ...]
    rows: str
    former: tuple[str, ...] = ()
    bare: bool = False
    lists: tuple[str, ...] = ()


class JsonMeter:
    """Counts what a JSON body will hold, from pieces of its text, and without parsing it.

    Commas, colons and brackets in strings count too.
    """

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._values = self._lists = self._keys = 0

    def add(self, piece: bytes) -> None:
        """Count another piece. Raises PayloadTooLarge as soon as there are too many of something."""
        self._values += piece.count(b",")
        self._keys += piece.count(b":")
        self._lists += piece.count(b"[") + piece.count(b"{")
        most_lists = max(self._max_values // VALUES_PER_LIST, 64)
        for seen, most, what in (
            (self._values, self._max_values, "values"),
            (self._lists, most_lists, "lists and objects"),
            (self._keys, MAX_KEYS, "keys"),
        ):
            if seen > most:
                raise PayloadTooLarge(f"JSON body has over {most} {what}, expected at most {most}")


def read_object(body: bytes, names: JsonNames) -> dict[str, Any]:
    """Parse a JSON object.

    Every field but the rows and `names.lists` is a scalar, or a short description of a wrong value.

    Raises InvalidInput, naming a field that is unknown.
    """
    value = load(body)
    if not isinstance(value, dict):
        raise InvalidInput(f"body is a JSON {type(value).__name__}, expected an object")
    for name in value:
        if name not in names.known and name not in names.former:
            raise InvalidInput(f"{_printable(name)} is unknown, expected one of {', '.join(names.known)}")
    fields = {
        name: [_scalar(part) for part in each]
        if name in names.lists and isinstance(each, list)
        else _scalar(each)
        for name, each in value.items()
        if name != names.rows
    }
    if names.rows in value:
        check_numbers(value[names.rows], names.rows, body)
        fields[names.rows] = value[names.rows]
    return fields


def read_rows(body: bytes, names: JsonNames) -> Any:
    """Parse a JSON body and return its rows, undecoded. Raises InvalidInput."""
    if names.bare and not body.lstrip(b" \t\r\n").startswith(b"{"):
        value = load(body)
        check_numbers(value, names.rows, body)
        return value
    fields = read_object(body, names)
    if names.rows not in fields:
        raise InvalidInput(f"{names.rows} is missing")
    return fields[names.rows]


def load(body: bytes) -> Any:
    """Parse JSON. Raises InvalidInput."""
    try:
        return orjson.loads(body) if len(body) <= ORJSON_BYTES else from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"body is not JSON: {error}") from None


def _scalar(value: Any) -> Any:
    if isinstance(value, list | dict):
        return [shown(value)]
    if isinstance(value, str):
        return value[:MAX_FIELD_CHARS]
    return value


def check_numbers(value: Any, name: str, body: bytes) -> None:
    """Reject booleans, which numpy would take for the numbers 1 and 0 if others are beside them.

    body: the JSON text that the value is from. Raises InvalidInput.
    """
    if b"true" not in body and b"false" not in body:
        return
    left = [value] if isinstance(value, list) else []
    while left:
        for each in left.pop():
            if isinstance(each, bool):
                raise InvalidInput(f"{name} holds {each}, expected numbers or base64")
            if isinstance(each, list):
                left.append(each)


def _printable(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 40 else shown(name)
