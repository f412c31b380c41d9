"""Whole responses, and the JSON in them."""

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from service.http.types import JSON, Send


class Response(NamedTuple):
    """A whole response.

    timing: the value of its Server-Timing header, which differs for each request.
    model: the name of the model it came from, for the metrics, or empty.
    """

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    timing: bytes | None = None
    model: str = ""

    async def send(self, send: Send, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Send it through ASGI. more: headers that are this request's own."""
        start = list(self.headers)
        if self.status not in (204, 304):  # without content, and so without its length (RFC 9110, 8.6)
            start = [
                (b"content-type", self.content_type.encode("latin-1")),
                (b"content-length", str(len(self.body)).encode("ascii")),
                *start,
            ]
        if self.timing is not None:
            start.append((b"server-timing", self.timing))
        start += more
        await send({"type": "http.response.start", "status": self.status, "headers": start})
        await send({"type": "http.response.body", "body": self.body})


def to_json(value: object) -> bytes:
    """Encode as JSON, numpy arrays and numbers included."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
