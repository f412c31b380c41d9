"""Whole responses, and the JSON in them."""

from typing import NamedTuple

import orjson

from service.http.types import JSON, Send
from service.observability.request_ids import REQUEST_ID


class Answer(NamedTuple):
    """A whole answer.

    timing: the value of its Server-Timing header, which is another for each request.
    model: the name of the model it came from, for the metrics, or empty.
    """

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    timing: bytes | None = None
    model: str = ""

    async def send(self, send: Send, request_id: bytes | None = None) -> None:
        """Send it, with its length and the request's id, if it has one."""
        start = [
            (b"content-type", self.content_type.encode("latin-1")),
            (b"content-length", str(len(self.body)).encode("ascii")),
            *self.headers,
        ]
        if self.timing is not None:
            start.append((b"server-timing", self.timing))
        if request_id is not None:
            start.append((REQUEST_ID, request_id))
        await send({"type": "http.response.start", "status": self.status, "headers": start})
        await send({"type": "http.response.body", "body": self.body})


def to_json(value: object) -> bytes:
    """JSON, numpy arrays and numbers included."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
