"""Request bodies and queries, read straight from ASGI.

FastAPI's routing and validation cost more than everything else about a small request, so `/classify` and
`/generate` do without. Knows nothing of models.
"""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from urllib.parse import parse_qsl

from service.errors import InvalidInput, PayloadTooLarge
from service.http.disconnects import ClientDisconnected
from service.http.negotiation import cached
from service.http.types import Headers, Message, Receive

CheckPiece = Callable[[bytes], None]


async def read_body(
    headers: Headers, receive: Receive, max_bytes: int, check: CheckPiece | None = None
) -> bytes:
    """Read the request's body. Raises PayloadTooLarge before it holds more than `max_bytes`.

    check: sees each piece as it comes, and may raise to reject the body before it is whole.
    """
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > max_bytes:
        raise PayloadTooLarge(f"body has {int(declared)} bytes, expected at most {max_bytes}")
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request":
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"body has over {max_bytes} bytes, expected at most {max_bytes}")
        if check is not None:
            check(body)
        return body
    return await _read_chunks(message, receive, max_bytes, check)


async def _read_chunks(message: Message, receive: Receive, max_bytes: int, check: CheckPiece | None) -> bytes:
    body = io.BytesIO()  # whose value is no copy, unlike that of a list of pieces
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece = message.get("body", b"")
        if body.tell() + len(piece) > max_bytes:
            raise PayloadTooLarge(f"body has over {max_bytes} bytes, expected at most {max_bytes}")
        if check is not None:
            check(piece)
        body.write(piece)
        if not message.get("more_body", False):
            return body.getvalue()
        message = await receive()


@cached
def read_query(query: bytes, known: tuple[str, ...]) -> Mapping[str, str]:
    """Parse the query's parameters. Raises InvalidInput for one that is unknown or given twice."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=32)
    except ValueError as error:
        raise InvalidInput(f"query string cannot be read: {error}") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise InvalidInput(f"unknown query parameter {name!r}, expected one of {', '.join(known)}")
        if name in values:
            raise InvalidInput(f"query parameter {name} is given twice, expected once")
        values[name] = value
    return MappingProxyType(values)


def parse_int(name: str, text: str, low: int, high: int) -> int:
    """Parse a whole number from a query. Raises InvalidInput outside low..high."""
    digits = text.removeprefix("-")
    value = int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None
    if value is None or not low <= value <= high:
        raise InvalidInput(f"{name} is {text[:40]!r}, expected a whole number in {low}..{high}")
    return value


def parse_bool(name: str, text: str) -> bool:
    """Parse true or false from a query. Raises InvalidInput for anything else."""
    if text not in ("true", "false"):
        raise InvalidInput(f"{name} is {text[:40]!r}, expected true or false")
    return text == "true"
