"""uvicorn's HTTP/1.1 protocol, with a fast path for known heads and one write per response instead of two.

uvicorn writes head and body of a response one after another, and uvloop makes one system call for each,
which wakes the client twice. Here everything written in one iteration of the event loop goes out together.
"""

import asyncio
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.batching.request import Outcome
from service.http.fast.bodies import PartialBody, RejectedBody
from service.http.fast.corked import CorkedTransport
from service.http.fast.endpoint import Body, FastPath, KnownHead, Plan
from service.http.lifecycle import TRACE_RESPONSE, Call
from service.http.responses import Response
from service.observability.request_ids import REQUEST_ID
from service.serving.predictor import Cancel

END_OF_HEAD = b"\r\n\r\n"


class FastPathProtocol(HttpToolsProtocol):
    """uvicorn's protocol on a corked transport, with a fast path for the requests that `fast_path` handles.

    A connection has one request at a time on the fast path; bytes that come meanwhile are kept. A request on
    uvicorn's path stays there until it is answered; none is on both.
    """

    def __init__(self, fast_path: FastPath | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._fast_path = fast_path
        self._call: FastCall | None = None
        self._body: PartialBody | RejectedBody | None = None
        self._early: list[bytes] = []
        self._parsing = False
        self._closing = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._replied_at = 0.0
        self._inner: asyncio.Transport
        self._corked: CorkedTransport
        self._default_headers: tuple[object, bytes] = (None, b"")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._inner = transport
        self._corked = CorkedTransport(transport, self.loop)
        super().connection_made(self._corked)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection; its request in flight is cancelled."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._body = None
        if self._call is not None:
            self._call.abandon()
            self._call = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the fast path if the bytes begin a request that `fast_path` handles, else uvicorn's."""
        if self._body is not None:
            self._receive_body(self._body, data)
        elif self._call is not None:
            self._early.append(data)
            self.flow.pause_reading()
        elif self._fast_path is None or not self._is_idle() or not self._receive_head(self._fast_path, data):
            super().data_received(data)

    def shutdown(self) -> None:
        """Close, once the request that is in flight is answered."""
        if self._call is not None:
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

    def _receive_head(self, fast_path: FastPath, data: bytes) -> bool:
        """Handle a request, given its first bytes; returns False if uvicorn must handle it."""
        body_at = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if body_at < len(END_OF_HEAD):
            return False
        head = data[:body_at]
        known = fast_path.known.get(head)
        if known is None or known.plan is None or not known.plan.is_valid():
            known = fast_path.learn(head)
        if known is None or (plan := known.plan) is None:
            return False
        missing = body_at + known.content_length - len(data)
        if missing < 0:
            return False  # pipelined
        reason = plan.check_admission()
        body = memoryview(data)[body_at:]
        if reason is None and not missing and not plan.any_body and not plan.accepts(body):
            return False
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        call = self._call = FastCall(self, fast_path, known, plan)
        if reason is not None:
            plan.note_rejection()
            if missing:
                self._body = RejectedBody(reason, missing)
            else:
                self._reply(call, call.rejected(reason))
        elif missing:
            self._body = PartialBody(head, known.content_length, body)
        else:
            call.submit(body, admitted=True)
        return True

    def _receive_body(self, body: PartialBody | RejectedBody, data: bytes) -> None:
        """Handle more bytes of a request whose body was incomplete."""
        remainder = body.add(data)
        if body.missing:
            return
        self._body, call = None, self._call
        assert call is not None
        if isinstance(body, PartialBody) and not call.plan.any_body and not call.plan.accepts(body.whole):
            self._call = None
            super().data_received(b"".join((body.head, body.whole, remainder)))
            return
        if remainder:
            self._early.append(remainder)
            self.flow.pause_reading()
        if isinstance(body, RejectedBody):
            self._reply(call, call.rejected(body.reason))
        else:
            call.submit(body.whole, admitted=False)

    def _reply(self, call: "FastCall", response: Response) -> None:
        self._call = None
        self.server_state.total_requests += 1
        defaults = self.server_state.default_headers
        if self._default_headers[0] is not defaults:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in defaults)
            self._default_headers = (defaults, lines)
        own = b"" if call.request_id is None and call.span is None else _own_lines(call)
        if self._closing:
            own += b"connection: close\r\n"
        data = encode(response, STATUS_LINE[response.status], self._default_headers[1], own)
        if self._corked.held:
            self._corked.flush()
        if not self._inner.is_closing():
            self._inner.write(data)
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
        """Close an idle connection. One timer per connection, re-armed if a later response was sent."""
        self._idle_timer = None
        if self._call is not None or not self._is_idle():
            return  # the next response sets the timer again, uvicorn its own
        if self.timeout_keep_alive_task is not None:
            return
        idle_until = self._replied_at + self.timeout_keep_alive
        if self.loop.time() >= idle_until:
            self.timeout_keep_alive_handler()
        else:
            self._idle_timer = self.loop.call_at(idle_until, self._close_if_idle)


class FastCall(Call):
    """A request on the fast path."""

    __slots__ = ("_cancel", "_protocol", "plan")

    def __init__(self, protocol: FastPathProtocol, fast_path: FastPath, known: KnownHead, plan: Plan) -> None:
        client = protocol.client
        super().__init__(
            fast_path.lifecycle,
            known.method,
            known.path,
            known.path,
            client[0] if client else "",
            known.head.headers,
            known.request_id,
            plan.model,
        )
        self.plan = plan
        self._protocol = protocol
        # Refers back to this call: cleared when done, or the reference cycle would keep the body until the
        # next collection.
        self._cancel: Cancel | None = None

    def submit(self, body: Body, *, admitted: bool) -> None:
        """Submit the body's rows; the reply may come at once."""
        try:
            traceparent = None if self.span is None else self.submitted()
            self._cancel = self.plan.submit(body, traceparent, self._done, admitted=admitted)
        except Exception as error:  # the request's edge
            self._protocol._reply(self, self.failed(error))

    def abandon(self) -> None:
        """Cancel the request, because its client has disconnected."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self.client_disconnected()

    def _done(self, outcome: Outcome) -> None:
        self._cancel = None
        self._protocol._reply(self, self._response(outcome))

    def _response(self, outcome: Outcome) -> Response:
        if isinstance(outcome, Exception):
            return self.failed(outcome)
        try:
            if self.span is not None:
                self.note_inference(outcome)
            response = self.plan.respond(outcome)
        except Exception as error:  # the request's edge
            return self.failed(error)
        self.ended(response.status)
        return response


def encode(response: Response, status_line: bytes, default_lines: bytes, own_lines: bytes) -> bytes:
    """Return a response's bytes on the wire. default_lines, own_lines: further headers, as whole lines."""
    timing = b"server-timing: %b\r\n" % response.timing if response.timing else b""
    return b"%b%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
        status_line,
        default_lines,
        _header_lines(response.content_type, response.headers),
        timing,
        own_lines,
        len(response.body),
        response.body,
    )


@lru_cache(256)
def _header_lines(content_type: str, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Encode the header lines that most responses of one kind share."""
    pairs = ((b"content-type", content_type.encode("latin-1")), *headers)
    return b"".join(b"%b: %b\r\n" % pair for pair in pairs)


def _own_lines(call: Call) -> bytes:
    lines = b"" if call.request_id is None else b"%b: %b\r\n" % (REQUEST_ID, call.request_id)
    if call.span is not None:
        lines += b"%b: %b\r\n" % (TRACE_RESPONSE, call.span.header())
    return lines
