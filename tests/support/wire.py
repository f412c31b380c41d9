"""A connection without a socket: bytes in, bytes out, one step of the event loop at a time."""

import asyncio
from collections.abc import Iterable
from typing import Any

import h11
import uvicorn
from uvicorn.server import ServerState

from service.batching.request import Done, InferenceResult
from service.batching.retries import Refusal
from service.errors import QueueFull
from service.http.fast.connections import Connections, Limits
from service.http.fast.endpoint import Body, FastPath
from service.http.fast.head import Head
from service.http.fast.protocol import HttpProtocol
from service.http.lifecycle import Lifecycle
from service.http.responses import Response
from service.http.types import Receive, Scope, Send
from service.observability.metrics import Metrics
from service.serving.predictor import Cancel
from service.settings import Settings


class Wire(asyncio.Transport):
    """What a protocol has written, and what it has asked of its transport."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.closed = False
        self.ended = False

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end of the stream"
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default


class Echo:
    """An application that notes each request, and answers 200 once it has read its body."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            try:
                message = await receive()
            except Exception:  # the body is malformed
                await _answer(send, 400)
                return
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.seen.append((scope["method"], scope["raw_path"], body))
        await _answer(send, 200)


class FastEcho:
    """A fast endpoint that notes each request in an `Echo`, and answers 200."""

    model = ""
    timeout = 30.0

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._head: Head | None = None

    def plan(self, head: Head) -> "FastEcho":
        plan = FastEcho(self._echo)
        plan._head = head
        return plan

    def is_valid(self) -> bool:
        return True

    def for_body(self, body: Body) -> "FastEcho":
        del body
        return self

    def memory(self) -> memoryview | None:
        return None

    def check_admission(self) -> Refusal | None:
        return None

    def reject(self, refusal: Refusal) -> QueueFull:
        raise NotImplementedError(refusal)

    def submit(
        self, body: Body, traceparent: object, done: Done, received_at: float, *, admitted: bool
    ) -> Cancel:
        del traceparent, received_at, admitted
        assert self._head is not None
        self._echo.seen.append((self._head.method, self._head.path, bytes(body)))
        result = InferenceResult(1, (), 0.0, 0.0, 1)
        asyncio.get_running_loop().call_soon(done, result)
        return lambda: None

    def respond(self, result: InferenceResult) -> Response:
        del result
        return Response(b"", "text/plain")


def fast_path_over(echo: Echo, *paths: bytes) -> FastPath:
    """A fast path that takes every plain request to these paths."""
    return FastPath(dict.fromkeys(paths, FastEcho(echo)), Lifecycle(Metrics()))


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def protocol_over(
    app: Any, settings: Settings, fast_path: FastPath | None = None
) -> tuple[HttpProtocol, Wire]:
    """A connected protocol and its transport."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False)
    config.load()
    connections = Connections(Limits.of(settings))
    protocol = HttpProtocol(connections, fast_path, config=config, server_state=ServerState())
    wire = Wire()
    protocol.connection_made(wire)
    return protocol, wire


async def feed(protocol: HttpProtocol, wire: Wire, pieces: Iterable[bytes]) -> None:
    """Hand over each piece once the protocol reads, and let it do all it can."""
    for piece in pieces:
        for _ in range(2000):
            if wire.reading or wire.closed:
                break
            await asyncio.sleep(0)
        if wire.closed:
            break
        protocol.data_received(piece)
        await settle()
    await settle()


async def settle() -> None:
    """Let everything happen that needs no more input."""
    for _ in range(60):
        await asyncio.sleep(0)


def read_strictly(stream: bytes) -> tuple[list[tuple[str, bytes, bytes]], bool]:
    """The requests in a stream as h11 reads them, and whether it then rejected the stream.

    Empty lines before a request are removed: a server should ignore them (RFC 9112, 2.2), h11 does not.
    """
    requests: list[tuple[str, bytes, bytes]] = []
    rest = stream
    while True:
        while rest.startswith(b"\r\n"):
            rest = rest[2:]
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=32 * 1024)
        connection.receive_data(rest)
        body, head = b"", None
        try:
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return requests, False
        except h11.RemoteProtocolError:
            return requests, True
        assert head is not None
        requests.append((head.method.decode(), bytes(head.target), body))
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return requests, False
        rest = connection.trailing_data[0]


def statuses(written: bytes) -> list[int]:
    """The statuses of the responses in a stream of whole ones."""
    found: list[int] = []
    rest = written
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        if status == 100:
            continue
        found.append(status)
        length = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")]
        assert len(length) == 1, head
        assert len(rest) >= length[0]
        rest = rest[length[0] :]
    return found
