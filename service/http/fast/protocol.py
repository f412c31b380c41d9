"""HTTP/1.1 on one connection: one request at a time, on the fast path or through ASGI.

A request begins only once the response before it is written: no response can overtake another, and bytes that
come early are not even looked at. Every wait for the client has a deadline, and everything that is kept for
it a bound; see `connections`.
"""

import asyncio
import math
import re
import select
import time
from typing import Any
from urllib.parse import unquote

import uvicorn
from uvicorn.server import ServerState

from service.errors import BuffersFull, DeadlineExceeded, InkserveError, InvalidInput, RequestTimeout
from service.http.error_responses import plain_error
from service.http.fast.bodies import Framing, PartialBody, RejectedBody, framing_of
from service.http.fast.call import FastCall, encode
from service.http.fast.connections import Connections
from service.http.fast.corked import CorkedTransport
from service.http.fast.endpoint import BodyPlan, FastPath, KnownHead, Plan
from service.http.fast.exchange import HIGH_WATER, STATUS_LINES, Exchange
from service.http.fast.head import END_OF_HEAD, MalformedRequest, RequestHead, read_head
from service.http.headers import TIMEOUT
from service.http.responses import Response
from service.http.types import CLIENT_CERTIFICATE, RECEIVED_AT, App, Scope
from service.observability.metrics import Closing

REQUESTS_PER_ITERATION = 16
"""Pipelined requests that one connection may have handled before other connections have their turn."""

DISCARDED_BYTES = 1024 * 1024
"""A body that nobody reads is discarded up to this size, and the connection kept. Behind a larger one it is
closed."""

LINGER_SECONDS = 2.0
"""A connection that is closed while its client sends is read for this long after its client's last bytes.
Closing it at once would reset it, and the client might never see the response."""

MAX_LINGER_SECONDS = 30.0

STOP_SECONDS = 0.5
"""At shutdown, a connection that was just active may send one more request within this time."""

ACTIVE_SECONDS = 2.0
"""A connection that has been idle for longer counts as inactive at shutdown, and is closed at once."""

STALL_SECONDS = 2.0
"""At shutdown, how long a client may pause within a request."""

_BARE_LF = re.compile(rb"(?<!\r)\n")
_METHOD_START = re.compile(rb"[A-Z]")


class HttpProtocol(asyncio.Protocol):
    """One connection. Started by uvicorn's server, which calls it as its own protocols.

    fast_path: handles its requests without ASGI; None for none.
    """

    def __init__(
        self,
        connections: Connections,
        fast_path: FastPath | None,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any] | None = None,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.client: tuple[str, int] | None = None
        self.deadline = math.inf
        self.idle_since: float | None = None
        self.served = False
        self._connections = connections
        self._limits = connections.limits
        self._fast_path = fast_path
        self._app: App = config.loaded_app
        self._root_path: str = config.root_path
        self._state = server_state
        self._app_state = app_state or {}
        self._loop = _loop or asyncio.get_running_loop()
        self._inner: asyncio.Transport
        self._corked: CorkedTransport
        self._server: tuple[str, int | None] | None = None
        self.scheme = "http"
        self._certified = False
        self._default_lines: tuple[object, bytes] = (None, b"")
        # What is being received.
        self._began = 0.0
        self._head = b""
        self._body: PartialBody | RejectedBody | None = None
        self._framing: Framing | None = None
        self._patience = 0.0  # seconds from the first byte in which the body must come
        self._early: list[bytes] = []
        self._early_since = 0.0
        self._buffered = 0
        # What is being answered.
        self._call: FastCall | None = None
        self._exchange: Exchange | None = None
        # The state of the connection.
        self._advancing = False
        self._reading = True
        self._drained: asyncio.Event | None = None
        self._write_paused = False
        self._closing = False
        self._closes_at = math.inf
        self._cut_off = False  # an error ended a request before its body was read
        self._lingering = False
        self._linger_until = math.inf

    @property
    def in_flight(self) -> bool:
        """See `connections.Connection`: not a request to another route, such as a probe or a scrape."""
        return self._call is not None or (self._exchange is not None and self._exchange.is_inference)

    # asyncio's interface

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._inner = transport
        self._corked = CorkedTransport(transport, self._loop)
        self._server = _address(transport, "sockname")
        self.client = _address(transport, "peername")
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._certified = bool(transport.get_extra_info("peercert"))
        if self._fast_path is not None and self._fast_path.edge.needs_certificate and not self._certified:
            self._fast_path = None  # the ASGI path rejects its requests
        if not self._connections.add(self):
            self._connections.count("refused", "no connection is idle")
            self._lingering = True
            transport.abort()
            return
        self._state.connections.add(self)  # type: ignore[arg-type]  # declared for uvicorn's own protocols
        self.idle_since = now = time.monotonic()
        self._closes_at = self._connections.closes_at(now)
        self.deadline = now + self._limits.head_timeout_seconds
        if self._closing or self._connections.draining:
            self.deadline = now + STOP_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection; its request in flight is cancelled."""
        del exc
        self._connections.discard(self)
        self._state.connections.discard(self)
        self._lingering = True
        self._release()
        self._early.clear()
        self._head = b""
        self._body = self._framing = None
        call, self._call = self._call, None
        if call is not None:
            call.abandon()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnect()
        if self._drained is not None:
            self._drained.set()

    def data_received(self, data: bytes) -> None:
        """Handle the bytes, or keep them until the response before them is written."""
        if self._framing is not None:  # also if its request is answered: these bytes are not the next one
            self._receive_content(self._framing, data)
        elif self._call is None and self._exchange is None and not self._write_paused and not self._lingering:
            self._advance(data)
        elif self._body is not None:
            self._receive_fast_body(self._body, data)
        elif self._lingering:
            self.deadline = min(time.monotonic() + LINGER_SECONDS, self._linger_until)
        else:
            self._keep(data)

    def eof_received(self) -> None:
        """The client sends no more: it has disconnected. The transport closes itself."""

    def pause_writing(self) -> None:
        """The client does not read its responses: give it some time, and handle no more requests."""
        self._write_paused = True
        self.idle_since = None
        self.deadline = time.monotonic() + self._limits.send_timeout_seconds
        self._hold(self._inner.get_write_buffer_size())
        if not self._connections.has_room(0):
            self.close_now("send_timeout")

    def resume_writing(self) -> None:
        """The client has read its responses."""
        self._write_paused = False
        if self._drained is not None:
            self._drained.set()
        if self._call is None and self._exchange is None:
            self._release()
            if not self._lingering:
                self._become_idle()
        else:
            self.deadline = math.inf

    # Requests in

    def _advance(self, data: bytes) -> None:
        """Handle the requests that begin with these bytes, one after another."""
        self._advancing = True
        try:
            for _ in range(REQUESTS_PER_ITERATION):
                data = self._begin(data)
                if not data or self._call is not None or self._exchange is not None:
                    break
                if self._write_paused or self._lingering:
                    break
        finally:
            self._advancing = False
        if not data or self._lingering:
            return
        self._keep(data)
        if self._call is None and self._exchange is None and not self._write_paused:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        """Handle the bytes that came early."""
        if self._call is not None or self._exchange is not None or self._write_paused or self._lingering:
            return
        if self._early:
            data = b"".join(self._early)
            self._early.clear()
            self._advance(data)
        if not self._early:
            self._read_on()

    def _keep(self, data: bytes) -> None:
        """Keep bytes that came early, and read no more until they are handled."""
        if not self._early:
            self._early_since = time.monotonic()
        self._early.append(data)
        self._read_no_more()

    def _begin(self, data: bytes) -> bytes:
        """Handle the beginning of a request; returns the bytes behind it."""
        searched = 0
        if self._head:
            data, searched = self._head + data, max(0, len(self._head) - 3)
            self._head = b""
        else:
            self._began, self._early_since = self._early_since or time.monotonic(), 0.0
        if data[:1] == b"\r":  # RFC 9112, 2.2: an empty line before a request is ignored
            data, searched = data[2 * _leading_lines(data) :], 0
        body_at = data.find(END_OF_HEAD, searched) + len(END_OF_HEAD)
        if body_at < len(END_OF_HEAD):
            self._keep_head(data)
            return b""
        if body_at > self._limits.max_head_bytes:
            self._reject_head(len(data))
            return b""
        fast_path = self._fast_path
        if fast_path is not None:
            head = data[:body_at]
            known = fast_path.known.get(head)
            if known is None or known.plan is None or not known.plan.is_valid():
                known = fast_path.learn(head)
            if known is not None and known.plan is not None:
                return self._begin_call(fast_path, known, known.plan, data, body_at)
        return self._begin_exchange(data, body_at)

    def _keep_head(self, data: bytes) -> None:
        """Keep an incomplete head, unless it can never become one."""
        if not data:
            return
        if len(data) > self._limits.max_head_bytes:
            self._reject_head(len(data))
        elif data != b"\r" and not _METHOD_START.match(data):
            self._reject(MalformedRequest(f"request begins with {data[:8]!r}, expected a method"))
        elif _BARE_LF.search(data):
            self._reject(MalformedRequest("a line of the head ends with LF, expected CRLF"))
        else:
            self._head = data
            self.idle_since = self.idle_since or self._began
            wait = STALL_SECONDS if self._closing else self._limits.head_timeout_seconds
            self.deadline = self._began + wait

    def _begin_call(
        self, fast_path: FastPath, known: KnownHead, plan: Plan, data: bytes, body_at: int
    ) -> bytes:
        """Begin a request on the fast path; returns the bytes behind it."""
        end = body_at + known.content_length
        missing = end - len(data)
        body = memoryview(data)[body_at:end]
        refusal = plan.check_admission()
        bound: BodyPlan | None = None
        if refusal is None and missing <= 0:
            bound = plan.for_body(body)
            if bound is None:
                return self._begin_exchange(data, body_at)
        self.idle_since, self.deadline = None, math.inf
        call = self._call = FastCall(self, fast_path, known, plan, self._began)
        if bound is not None:
            call.submit(bound, body, admitted=True)
        elif refusal is None:
            self._body = PartialBody(data[:body_at], known.content_length, body, plan.memory())
            self.deadline = self._receive_until(call.deadline)
            self._hold(len(body))
        elif missing > 0:
            self._body = RejectedBody(plan.reject(refusal), missing)
            self.deadline = self._receive_until(call.deadline)
        else:
            self.reply(call, call.rejected(plan.reject(refusal)))
        return data[end:] if missing < 0 else b""

    def _receive_fast_body(self, body: PartialBody | RejectedBody, data: bytes) -> None:
        """Handle more bytes of a request whose body was incomplete."""
        if isinstance(body, PartialBody) and not self._hold_body(len(data)):
            return
        remainder = body.add(data)
        if body.missing:
            return
        self._body, call = None, self._call
        assert call is not None
        self.deadline = math.inf
        if remainder:
            self._keep(remainder)
        if isinstance(body, RejectedBody):
            self.reply(call, call.rejected(body.error))
        elif (bound := call.plan.for_body(body.whole)) is not None:
            call.submit(bound, body.whole, admitted=False)
        else:
            self._call = None
            self._begin_exchange(b"".join((body.head, body.whole)), len(body.head))

    def _begin_exchange(self, data: bytes, body_at: int) -> bytes:
        """Begin a request on the ASGI path; returns the bytes behind it."""
        try:
            head = read_head(data[:body_at])
        except MalformedRequest as error:
            self._reject(error)
            return b""
        self.idle_since, self.deadline = None, math.inf
        exchange = self._exchange = Exchange(self, self._scope(head), head)
        framing = framing_of(head.content_length)
        task = self._loop.create_task(exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)
        if framing.done:
            exchange.feed([], complete=True)
            return data[body_at:]
        self._framing = framing
        self._patience = _patience(head, self._limits.request_timeout_seconds)
        self.deadline = self._receive_until(self._began + self._patience)
        if len(data) > body_at:
            return self._receive_content(framing, data[body_at:])
        return b""

    def _receive_content(self, framing: Framing, data: bytes) -> bytes:
        """Hand more of a body on to the application; returns the bytes behind it, which are kept."""
        exchange = self._exchange
        try:
            pieces, remainder = framing.split(data)
        except MalformedRequest as error:
            self._connections.count("malformed", str(error))
            self._cut_short(InvalidInput(str(error)))
            return b""
        if exchange is not None:
            size = sum(map(len, pieces))
            if size and not self._hold_body(size):
                return b""
            exchange.feed(pieces, complete=framing.done)
            if exchange.buffered > HIGH_WATER:
                self._read_no_more()
        if framing.done:
            self._framing = None
            self.deadline = math.inf
            if exchange is None:
                self._become_idle()
        elif self._closing:
            self.deadline = min(self.deadline, time.monotonic() + STALL_SECONDS)
        if remainder:
            if self._advancing:
                return remainder
            self._keep(remainder)
            if exchange is None:
                self._resume()
        return b""

    def _scope(self, head: RequestHead) -> Scope:
        path = head.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": self.client,
            "scheme": self.scheme,
            "method": head.method,
            "root_path": self._root_path,
            "path": self._root_path + (unquote(path) if "%" in path else path),
            "raw_path": self._root_path.encode("ascii") + head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
            RECEIVED_AT: self._began,
            CLIENT_CERTIFICATE: self._certified,
        }

    # Responses out

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that every response has."""
        return self._state.default_headers

    def reply(self, call: FastCall, response: Response) -> None:
        """Write the response of the fast path's call."""
        if self._call is not call:
            return  # the connection is lost
        self._call = None
        self._state.total_requests += 1
        has_own = call.request_id is not None or call.span is not None or call.report is not None
        own = call.own_lines() if has_own else b""
        closes = self._closing or self._cut_off or self._connections.draining
        if self._began >= self._closes_at and not self._has_more():
            closes = True
        if closes:
            own += b"connection: close\r\n"
        data = encode(response, STATUS_LINES[response.status], self._shared_lines(), own)
        if self._corked.held:
            self._corked.flush()
        if not self._inner.is_closing():
            self._inner.write(data)
        self._end(keep_alive=not closes)

    def write(self, data: bytes) -> None:
        """See `exchange.Wire`."""
        self._corked.write(data)

    async def drain(self) -> None:
        """See `exchange.Wire`."""
        while self._write_paused and not self._lingering:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def want_body(self) -> None:
        """See `exchange.Wire`."""
        if not self._early:
            self._read_on()

    def may_keep_alive(self) -> bool:
        """See `exchange.Wire`."""
        if self._closing or self._connections.draining:
            return False
        if self._framing is None:
            return self._began < self._closes_at or self._has_more()
        return self._framing.remaining is not None and self._framing.remaining <= DISCARDED_BYTES

    def exchange_done(self, *, keep_alive: bool) -> None:
        """See `exchange.Wire`."""
        if self._exchange is None:
            return  # the connection is lost
        self._exchange = None
        self._state.total_requests += 1
        self._corked.flush()
        self._end(keep_alive=keep_alive)

    def _end(self, *, keep_alive: bool) -> None:
        """Go on after a response."""
        if self._buffered and not self._write_paused:
            self._release()
        self.served = True
        if not keep_alive:
            self._close_after_response()
        elif not self._write_paused:
            self._become_idle()

    def _become_idle(self) -> None:
        """Wait for the next request, or handle the one that has come early."""
        if self._framing is not None:  # the body of a request that is answered is still coming, to be dropped
            self.deadline = time.monotonic() + self._limits.head_timeout_seconds
            self._read_on()
            return
        self.idle_since = now = time.monotonic()
        self.deadline = now + (STOP_SECONDS if self._closing else self._limits.keep_alive_seconds)
        if self._early:
            if not self._advancing:
                self._loop.call_soon(self._resume)
        elif not self._reading:
            self._read_on()

    def _shared_lines(self) -> bytes:
        defaults = self._state.default_headers
        if self._default_lines[0] is not defaults:
            self._default_lines = (defaults, b"".join(b"%b: %b\r\n" % pair for pair in defaults))
        return self._default_lines[1]

    def _reject_head(self, size: int) -> None:
        most = self._limits.max_head_bytes
        self._reject(MalformedRequest(f"request head has {size} bytes or more, expected at most {most}", 431))

    def _reject(self, error: MalformedRequest, why: Closing = "malformed") -> None:
        """Answer a request that never got to the application, and close."""
        self._connections.count(why, str(error))
        if self._fast_path is not None:
            self._fast_path.lifecycle.count_malformed(error.status)
        response = plain_error(error.status, str(error))
        data = encode(response, STATUS_LINES[response.status], self._shared_lines(), b"connection: close\r\n")
        self._corked.write(data)
        self._corked.flush()
        self._linger()

    # The end of a connection

    def shutdown(self) -> None:
        """Close, once what has been sent is answered. Called by uvicorn's server when it stops."""
        self._closing = True
        now = time.monotonic()
        if self._body is not None or self._framing is not None:
            self.deadline = min(self.deadline, now + STALL_SECONDS)
        elif self.idle_since is not None:
            inactive = now - self.idle_since > ACTIVE_SECONDS
            self.deadline = now + (0.0 if inactive and not self._head else STOP_SECONDS)
            if self.deadline <= now:
                self.expire(now)

    def expire(self, now: float) -> None:
        """Handle the deadline: of a head, a body, a client that does not read, or an idle connection."""
        if self._lingering:
            self._inner.close()
            self.deadline = math.inf if self._inner.get_write_buffer_size() == 0 else now + LINGER_SECONDS
            if now > self._linger_until + LINGER_SECONDS:
                self._inner.abort()
        elif self._write_paused:
            self.close_now("send_timeout")
        elif self._body is not None:
            self._expire_fast_body()
        elif self._framing is not None:
            self._connections.count("body_timeout")
            self._cut_short(self._body_timeout(self._patience))
        elif self._head:
            late = f"{self._limits.head_timeout_seconds:g} s"
            self._reject(MalformedRequest(f"request head is incomplete after {late}", 408), "head_timeout")
        elif self._early or self.has_bytes():
            self.deadline = now + STOP_SECONDS  # they came this moment, and are about to be read
        else:
            if not self.served:
                self._connections.count("head_timeout")
            self._inner.close()
            self.deadline = math.inf

    def abandon(self) -> None:
        """Give up the request in flight, because the client has disconnected."""
        self._inner.abort()

    def close_now(self, why: Closing) -> None:
        """Close, without a response."""
        self._connections.count(why)
        self._lingering = True
        self._inner.abort()

    def fileno(self) -> int:
        """Return the socket's file descriptor, or -1 if it is closed."""
        sock = self._inner.get_extra_info("socket")
        return -1 if sock is None or self._inner.is_closing() else sock.fileno()

    def _expire_fast_body(self) -> None:
        call, body = self._call, self._body
        assert call is not None
        self._connections.count("body_timeout")
        self._cut_off = True
        if isinstance(body, RejectedBody):
            self.reply(call, call.rejected(body.error))
        else:
            self.reply(call, call.failed(self._body_timeout(call.plan.timeout)))

    def _body_timeout(self, seconds: float) -> InkserveError:
        """Return the error for a body that did not come within these seconds from the first byte."""
        message = f"the body did not come within {seconds:g} s"
        if seconds < self._limits.request_timeout_seconds:  # the deadline is the client's own
            return DeadlineExceeded(message)
        return RequestTimeout(message)

    def _cut_short(self, error: InkserveError) -> None:
        """End the request of an exchange with an error, though its body has not come; close after it."""
        self._framing, self.deadline = None, math.inf
        self._cut_off = True
        if self._exchange is None:
            self._linger()
        else:
            self._exchange.fail(error)

    def _close_after_response(self) -> None:
        """Close at once if the client has nothing more to send, else read for a while what it sends."""
        if not (self._cut_off or self._framing or self._early or self.has_bytes()):
            self._lingering = True
            self._corked.close()
            self.deadline = time.monotonic() + self._limits.send_timeout_seconds
            self._linger_until = self.deadline
        else:
            self._linger()

    def _linger(self) -> None:
        """Send no more, but read on for a while: an unread byte would reset the connection."""
        self._lingering = True
        self._early.clear()
        self._head, self._body, self._framing = b"", None, None
        self._release()
        now = time.monotonic()
        self.idle_since, self.deadline = now, now + LINGER_SECONDS
        self._linger_until = now + MAX_LINGER_SECONDS
        self._corked.flush()
        if self._inner.is_closing():
            return
        if self._inner.can_write_eof():
            self._inner.write_eof()
        self._read_on()

    def _receive_until(self, deadline: float) -> float:
        return min(deadline, time.monotonic() + STALL_SECONDS) if self._closing else deadline

    def has_bytes(self) -> bool:
        """Whether the client has sent bytes that the event loop has not read yet."""
        sock = self._inner.get_extra_info("socket")
        if sock is None or self._inner.is_closing():
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _has_more(self) -> bool:
        """Whether the client has sent more than the request in flight: closing now would lose it."""
        return self._advancing or bool(self._early) or self.has_bytes()

    # Bounds

    def _read_no_more(self) -> None:
        if self._reading and not self._inner.is_closing():
            self._reading = False
            self._inner.pause_reading()
            self._connections.deaf.add(self)

    def _read_on(self) -> None:
        if not self._reading and not self._inner.is_closing():
            self._reading = True
            self._inner.resume_reading()
            self._connections.deaf.discard(self)

    def _hold(self, size: int) -> None:
        """Count bytes that are held for this connection, until its response is written."""
        self._buffered += size
        self._connections.buffered += size

    def _hold_body(self, size: int) -> bool:
        """Count more bytes of a body; if all connections hold too many, answer that and return False."""
        if self._connections.has_room(size):
            self._hold(size)
            return True
        most = self._limits.max_buffered_bytes
        error = BuffersFull(f"bodies of {self._connections.buffered} bytes are held, expected at most {most}")
        if self._call is None:
            self._cut_short(error)
        else:
            self._cut_off = True
            self.reply(self._call, self._call.failed(error))
        return False

    def _release(self) -> None:
        self._connections.buffered -= self._buffered
        self._buffered = 0


def _patience(head: RequestHead, longest: float) -> float:
    """Return the seconds in which a request's body must come: its own deadline's, or `longest`."""
    try:
        seconds = float(dict(head.headers).get(TIMEOUT.wire, longest))
    except ValueError:
        return longest
    return seconds if 0 < seconds <= longest else longest


def _leading_lines(data: bytes) -> int:
    """Return how many empty lines the bytes begin with."""
    lines = 0
    while data.startswith(b"\r\n", 2 * lines):
        lines += 1
    return lines


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    """Return the address of one end of a TCP connection, None for other sockets."""
    address = transport.get_extra_info(name)
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
