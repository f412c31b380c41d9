"""uvicorn's HTTP/1.1 protocol, with a short way for hot requests and one write a response instead of two.

uvicorn writes head and body of a response one after another, and uvloop makes a system call of each,
which wakes the client twice. Here what is written in one turn of the event loop goes out together.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.fast.endpoint import Body, Call, Direct
from service.http.fast.head import encode
from service.http.responses import Answer

END_OF_HEAD = b"\r\n\r\n"


class CorkedTransport:
    """A transport that holds what is written until the turn of the event loop ends.

    All else is the inner transport's. Closing it writes what was held first; aborting drops it.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Hold the bytes."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def write_whole(self, data: bytes) -> None:
        """Write a whole response, after what is held."""
        self._flush()
        if not self._inner.is_closing():
            self._inner.write(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self._flush()
        self._inner.close()

    def _flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            if not self._inner.is_closing():
                self._inner.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class HotProtocol(HttpToolsProtocol):
    """uvicorn's protocol on a corked transport, with a short way for the requests that `direct` takes.

    A connection has one request at a time on the short way; bytes that come meanwhile wait. What is on
    uvicorn's way stays there until it is answered, and nothing is on both.
    """

    def __init__(self, direct: Direct | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._direct = direct
        self._call: Call | None = None
        self._body: _PartialBody | _RefusedBody | None = None
        self._early: list[bytes] = []
        self._parsing = False
        self._closing = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._replied_at = 0.0
        self._corked: CorkedTransport
        self._default_headers: tuple[object, bytes] = (None, b"")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._corked = CorkedTransport(transport, self.loop)
        super().connection_made(self._corked)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection; a request that it was waiting for is cancelled."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._body is not None:
            self._call, self._body = self._body.call, None
        if self._call is not None:
            self._call.client_left()
            self._call = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes on the short way if they begin a request that `direct` takes, else on uvicorn's."""
        if self._call is not None:
            self._early.append(data)
            self.flow.pause_reading()
        elif self._body is not None:
            self._take_body(self._body, data)
        elif self._direct is None or not self._is_idle() or not self._take_head(self._direct, data):
            super().data_received(data)

    def shutdown(self) -> None:
        """Close, once the request that is in flight is answered."""
        if self._call is not None or self._body is not None:
            self._closing = True
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        """See uvicorn: its parser has begun to read a request."""
        self._parsing = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """See uvicorn: its parser has read a whole request."""
        self._parsing = False
        super().on_message_complete()

    def _is_idle(self) -> bool:
        """Whether uvicorn has nothing to do with what comes next."""
        return (
            not self._parsing
            and (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
            and not self.flow.write_paused
        )

    def _take_head(self, direct: Direct, data: bytes) -> bool:
        body_at = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if body_at < len(END_OF_HEAD):
            return False
        route = direct.route(data[:body_at])
        if route is None or route.plan is None:
            return False
        missing = body_at + route.content_length - len(data)
        if missing < 0:
            return False  # pipelined
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if not missing and route.refuse(self._reply):
            return True
        body = memoryview(data)[body_at:]
        call = Call(route, route.plan, self._reply)
        if missing:
            why = route.plan.refusal()
            if why is None:
                self._body = _PartialBody(call, data[:body_at], route.content_length, body)
            else:
                self._body = _RefusedBody(call, why, missing)
            return True
        if not route.plan.takes(body):
            return False
        self._call = call
        call.begin(body)
        return True

    def _take_body(self, partial: "_PartialBody | _RefusedBody", data: bytes) -> None:
        rest = partial.add(data)
        if partial.missing:
            return
        self._body = None
        if isinstance(partial, _PartialBody) and not partial.call.plan.takes(partial.whole):
            super().data_received(b"".join((partial.head, partial.whole, rest)))
            return
        if rest:
            self._early.append(rest)
            self.flow.pause_reading()
        self._call = partial.call
        partial.finish()

    def _reply(self, answer: Answer, request_id: bytes | None) -> None:
        self._call = None
        self.server_state.total_requests += 1
        defaults = self.server_state.default_headers
        if self._default_headers[0] is not defaults:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in defaults)
            self._default_headers = (defaults, lines)
        status_line = STATUS_LINE[answer.status]
        data = encode(answer, request_id, status_line, self._default_headers[1], self._closing)
        self._corked.write_whole(data)
        if self._closing:
            self._corked.close()
            return
        self._replied_at = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
        if self._early:
            data = b"".join(self._early)
            self._early.clear()
            self.flow.resume_reading()
            self.data_received(data)

    def _close_if_idle(self) -> None:
        """One timer a connection, not one a request: looks again when the last answer has aged."""
        self._idle_timer = None
        if self._call is not None or self._body is not None or not self._is_idle():
            return  # the next answer sets the timer again, uvicorn its own
        if self.timeout_keep_alive_task is not None:
            return
        idle_until = self._replied_at + self.timeout_keep_alive
        if self.loop.time() >= idle_until:
            self.timeout_keep_alive_handler()
        else:
            self._idle_timer = self.loop.call_at(idle_until, self._close_if_idle)


class _PartialBody:
    """A body of which some has come, and the head before it."""

    def __init__(self, call: Call, head: bytes, size: int, begun: Body) -> None:
        self.call = call
        self.head = head
        self.whole = memoryview(bytearray(size))
        self.missing = size
        self.add(begun)

    def add(self, data: Body) -> bytes:
        """Take what belongs to the body; returns the rest."""
        filled = len(self.whole) - self.missing
        taken = min(len(data), self.missing)
        self.whole[filled : filled + taken] = data[:taken]
        self.missing -= taken
        return bytes(data[taken:])

    def finish(self) -> None:
        """All of it has come."""
        self.call.begin(self.whole)


class _RefusedBody:
    """A body for which there was no room when its head came. It is not kept, only awaited.

    Many clients look for an answer only once they have sent all.
    """

    def __init__(self, call: Call, why: str, missing: int) -> None:
        self.call = call
        self.missing = missing
        self._why = why

    def add(self, data: bytes) -> bytes:
        """Drop what belongs to the body; returns the rest."""
        taken = min(len(data), self.missing)
        self.missing -= taken
        return data[taken:]

    def finish(self) -> None:
        """All of it has come."""
        self.call.refuse(self._why)
