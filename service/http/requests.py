"""The little HTTP that the hot routes need, straight on ASGI: bodies, queries, Accept, answers.

FastAPI's routing and validation cost more than the rest of a small request together, so
`/classify` and `/generate` do without. Knows nothing of models.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import parse_qsl

import orjson

from service.errors import InvalidInput, NotAcceptable, PayloadTooLarge
from service.observability.logs import REQUEST_ID

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[bytes, bytes]
T = TypeVar("T")
P = ParamSpec("P")

DISCONNECT_TICK_SECONDS = 0.05
"""A request that takes less is not watched for its client's leaving."""

REMEMBERED = 256
"""How many headers or queries a parser remembers, and the longest in bytes: clients send the same few."""

JSON = "application/json"
OCTETS = "application/octet-stream"

MODEL = "inkserve.model"
"""The scope's key for the name of the model that was found: whoever counts a failure wants to know it."""


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


async def read_body(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    """The request's body. Raises PayloadTooLarge before it holds more than `max_bytes`."""
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > max_bytes:
        raise PayloadTooLarge(f"body has {int(declared)} bytes, expected at most {max_bytes}")
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request":
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"body has over {max_bytes} bytes, expected at most {max_bytes}")
        return body
    return await _read_chunks(message, receive, max_bytes)


async def _read_chunks(message: Message, receive: Receive, max_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise PayloadTooLarge(f"body has over {max_bytes} bytes, expected at most {max_bytes}")
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def remembered(parse: Callable[P, T]) -> Callable[P, T]:
    """Parse the same short header or query, the first argument, only once. Errors are not remembered."""
    cached = lru_cache(REMEMBERED)(parse)

    @wraps(parse)
    def remember(*arguments: P.args, **options: P.kwargs) -> T:
        text = arguments[0]
        assert isinstance(text, bytes)
        return cached(*arguments) if len(text) <= REMEMBERED else parse(*arguments, **options)

    return remember


class DisconnectWatch:
    """Cancels the work of clients that have left, looking only at what takes longer than a tick.

    A timer and a task for each request would cost more than the rest of a small one.
    """

    def __init__(self, tick_seconds: float = DISCONNECT_TICK_SECONDS) -> None:
        self._tick_seconds = tick_seconds
        self._new: set[_Guarded] = set()
        self._waited: set[_Guarded] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def guard(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """Await the work, but cancel it when the client leaves; then raises ClientDisconnected.

        The body must have been read: what `receive` says next is that the client has left.
        """
        guarded = _Guarded(receive, asyncio.current_task())
        self._new.add(guarded)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        try:
            return await work
        except asyncio.CancelledError:
            if guarded.left and guarded.task is not None and not guarded.task.uncancel():
                raise ClientDisconnected from None
            raise
        finally:
            self._new.discard(guarded)
            self._waited.discard(guarded)
            if guarded.watcher is not None:
                guarded.watcher.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for guarded in self._waited:
            if guarded.watcher is None:
                guarded.watcher = loop.create_task(guarded.watch())
        self._waited |= self._new
        self._new.clear()
        self._timer = loop.call_later(self._tick_seconds, self._tick) if self._waited else None


@dataclass(slots=True, eq=False)
class _Guarded:
    """A request that is being worked on. left: whether its client has."""

    receive: Receive
    task: "asyncio.Task[Any] | None"
    watcher: "asyncio.Task[None] | None" = None
    left: bool = False

    async def watch(self) -> None:
        """Cancel the request's task when its client leaves."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.left = True
        if self.task is not None:
            self.task.cancel()


@remembered
def read_query(query: bytes, known: tuple[str, ...]) -> Mapping[str, str]:
    """The query's parameters. Raises InvalidInput for one that is unknown or given twice."""
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
    """A whole number from a query. Raises InvalidInput outside low..high."""
    digits = text.removeprefix("-")
    value = int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None
    if value is None or not low <= value <= high:
        raise InvalidInput(f"{name} is {text[:40]!r}, expected a whole number in {low}..{high}")
    return value


def media_type(headers: Headers) -> str:
    """The Content-Type without its parameters, in lower case; empty if there is none."""
    return _media_type(headers.get(b"content-type", b""))


@remembered
def _media_type(header: bytes) -> str:
    return header.partition(b";")[0].strip().lower().decode("latin-1")


def negotiate(headers: Headers, offered: tuple[str, ...]) -> str:
    """The offered media type that the Accept header likes best; the first offered one if all are alike.

    Raises NotAcceptable (RFC 9110, section 12.5.1).
    """
    return _negotiate(headers.get(b"accept", b"*/*"), offered)


@remembered
def _negotiate(accept: bytes, offered: tuple[str, ...]) -> str:
    ranges = [_media_range(part) for part in accept.decode("latin-1").lower().split(",") if part.strip()]
    best, best_quality = "", 0.0
    for candidate in offered:
        quality = _quality(candidate, ranges)
        if quality > best_quality:
            best, best_quality = candidate, quality
    if not best:
        raise NotAcceptable(
            f"Accept is {accept.decode('latin-1')[:200]!r}, expected one of {', '.join(offered)}"
        )
    return best


def _media_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in text.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0


def _quality(candidate: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Of the ranges that cover the candidate, the most specific one's quality."""
    for pattern in (candidate, candidate.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0


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
