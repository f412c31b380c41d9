"""A request on the ASGI path: its body on the way in, its response on the way out.

Knows nothing of what came before or comes after it on the connection.
"""

import asyncio
import http
import logging
import re
from typing import Protocol

from service.http.fast.head import RequestHead
from service.http.lifecycle import OTHER_ROUTE, Call
from service.http.types import CALL, App, Message, Scope

logger = logging.getLogger("inkserve")

HIGH_WATER = 64 * 1024
"""Reading pauses when the application has left this many bytes of a body unread."""

_UNFIT_NAME = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\"]')
_UNFIT_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def status_line(status: int) -> bytes:
    """Return the first line of a response."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


STATUS_LINES = {status: status_line(status) for status in range(100, 600)}


class Wire(Protocol):
    """What an exchange asks of its connection."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that every response has."""
        ...

    def write(self, data: bytes) -> None:
        """Write the bytes."""
        ...

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written."""
        ...

    def want_body(self) -> None:
        """Read on: the application waits for more of the body."""
        ...

    def may_keep_alive(self) -> bool:
        """Whether the connection could be used again after a response that starts now."""
        ...

    def exchange_done(self, *, keep_alive: bool) -> None:
        """Handle the end of the response. keep_alive: False if the connection must be closed."""
        ...


class Exchange:
    """One request and its response, as the ASGI application sees them."""

    def __init__(self, wire: Wire, scope: Scope, head: RequestHead) -> None:
        self.buffered = 0
        self.awaits_continue = head.expects_continue
        self._wire = wire
        self._scope = scope
        self._keep_alive = head.keep_alive
        self._pieces: list[bytes] = []
        self._body_complete = False
        self._body_delivered = False
        self._error: Exception | None = None
        self._disconnected = False
        self._event = asyncio.Event()
        self._started = False
        self._complete = False
        self._chunked: bool | None = None
        self._expected = 0

    @property
    def is_inference(self) -> bool:
        """Whether the request is for an inference route; False until the application has seen it."""
        call: Call | None = self._scope.get(CALL)
        return call is not None and call.route != OTHER_ROUTE

    def feed(self, pieces: list[bytes], *, complete: bool) -> None:
        """Add to the body."""
        self._pieces += pieces
        self.buffered += sum(map(len, pieces))
        self._body_complete = complete
        self.awaits_continue = False
        self._event.set()

    def fail(self, error: Exception) -> None:
        """Have the application's next `receive` raise the error; the connection is then closed."""
        self._error = error
        self._keep_alive = False
        self._event.set()

    def disconnect(self) -> None:
        """Note that the client has disconnected."""
        self._disconnected = True
        self._event.set()

    async def run(self, app: App) -> None:
        """Run the application."""
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as error:
            logger.error("the application failed", exc_info=error)
            await self._end_badly()
            if not isinstance(error, Exception):
                raise
        else:
            if not self._complete and not self._disconnected:
                logger.error("the application returned without completing its response")
                await self._end_badly()

    async def receive(self) -> Message:
        """See ASGI."""
        while True:
            if self._disconnected or self._complete:
                return {"type": "http.disconnect"}
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._pieces or (self._body_complete and not self._body_delivered):
                break
            self._event.clear()
            if self.awaits_continue:
                self.awaits_continue = False
                self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._wire.want_body()
            await self._event.wait()
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.buffered = 0
        self._body_delivered = self._body_complete
        return {"type": "http.request", "body": body, "more_body": not self._body_complete}

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if not self._disconnected:
            await self._wire.drain()
        if self._disconnected:
            return
        if not self._started:
            self._send_start(message)
        elif not self._complete:
            self._send_body(message)
        else:
            raise RuntimeError(f"ASGI message is {message['type']}, but the response is complete")

    def _send_start(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            raise RuntimeError(f"ASGI message is {message['type']}, expected http.response.start")
        self._started = True
        status = message["status"]
        # A client that still waits for "100 Continue" may send its body or not, and nobody could tell.
        self._keep_alive &= self._wire.may_keep_alive() and not self.awaits_continue
        lines = [STATUS_LINES[status]]
        closes = False
        for name, value in (*self._wire.default_headers, *message.get("headers", ())):
            if _UNFIT_NAME.search(name) or _UNFIT_VALUE.search(value):
                raise RuntimeError(f"response header {name!r} has characters that no header may have")
            name = name.lower()
            if name == b"content-length" and self._chunked is None:
                self._expected, self._chunked = int(value), False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self._expected, self._chunked = 0, True
            elif name == b"connection" and b"close" in value.lower():
                self._keep_alive, closes = False, True
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self._keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        if self._chunked is None and self._scope["method"] != "HEAD" and status not in (204, 304):
            # HTTP/1.0 knows no chunks: the end of the connection ends the body.
            self._chunked = self._scope["http_version"] == "1.1"
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self._expected = -1
        lines.append(b"\r\n")
        self._wire.write(b"".join(lines))

    def _send_body(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            raise RuntimeError(f"ASGI message is {message['type']}, expected http.response.body")
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._scope["method"] == "HEAD":
            self._expected = 0
        elif self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._wire.write(chunk + (b"" if more else b"0\r\n\r\n"))
        elif body:
            if self._expected >= 0:
                self._expected -= len(body)
                if self._expected < 0:
                    raise RuntimeError("response has more bytes than its Content-Length")
            self._wire.write(body)
        if more:
            return
        if self._expected > 0:
            raise RuntimeError("response has fewer bytes than its Content-Length")
        self._complete = True
        self._event.set()
        self._wire.exchange_done(keep_alive=self._keep_alive)

    async def _end_badly(self) -> None:
        """Answer 500 if no response has been started; close."""
        self._keep_alive = False
        if self._complete or self._disconnected:
            return
        if self._started:
            self._complete = True
            self._wire.exchange_done(keep_alive=False)
            return
        text = b'{"error":"internal error"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": text})
