"""Serves a predictor to other processes over a Unix socket; `engine_client` is the other end.

All clients' requests go to the same predictor, so its batches form across clients.
"""

import asyncio
import contextlib
import errno
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prometheus_client import Metric

from service.batching.request import Outcome, RequestGroup
from service.errors import FrameError, InkserveError, ModelNotFound, QueueFull
from service.serving.predictor import CancelOne, GroupPredictor
from service.split import messages
from service.split.accepting import Acceptor
from service.split.frames import Frame, Link
from service.split.messages import Kind, State
from service.split.shared_memory import PeerMemory

logger = logging.getLogger(__name__)

BACKLOG = 128
FLUSH_SECONDS = 5.0
QUEUE_SECONDS = 0.005
"""A worker is told a queue's state at most this often, unless a request was rejected: it knows the pace."""


class EngineServer:
    """A predictor's server. collect: returns the metrics of this process. Lives on the event loop."""

    def __init__(
        self, predictor: GroupPredictor, max_request_rows: int, collect: Callable[[], Iterable[Metric]]
    ) -> None:
        self._predictor = predictor
        self._max_request_rows = max_request_rows
        self._collect = collect
        self._instance = uuid.uuid4().hex
        self._links: dict[Link, dict[int, _Call]] = {}
        self._memories: dict[Link, PeerMemory] = {}
        self._told: dict[Link, dict[tuple[str, int | None], float]] = {}
        self._reloads: set[asyncio.Task[None]] = set()
        self._path: Path | None = None
        self._acceptor: Acceptor | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._no_clients = asyncio.Event()
        self._no_clients.set()

    async def start(self, path: Path) -> None:
        """Listen on a socket that only this user can open. Raises InkserveError if it is in use."""
        listener = bind_unix(path)
        self._path = path
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._acceptor = Acceptor(listener, self._open)

    async def reload(self) -> list[str]:
        """Reload the predictor, and send every client the models that it serves now."""
        problems = await self._predictor.reload()
        self.send_state()
        return problems

    def send_state(self) -> None:
        """Send every client the served models, and whether new work is accepted."""
        for link in self._links:
            self._send_state(link)

    async def wait_until_no_clients(self) -> None:
        """Wait until no client is connected."""
        await self._no_clients.wait()

    async def close(self) -> None:
        """Finish pending calls (a closed predictor answers them at once), then close every connection."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None and self._path is not None:
            _unlink(self._path)  # while it is ours: another engine may take it once we do not listen
            await acceptor.close()
        await asyncio.gather(*self._reloads, return_exceptions=True)
        for link in list(self._links):
            link.close()
        with contextlib.suppress(TimeoutError):  # a client may be stuck and not read its results
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._no_clients.wait()

    def _open(self, first: bytes, fds: Sequence[int]) -> Link:
        """Return a client's link. Raises FrameError if it passes on what cannot be used safely."""
        link = Link(self, hold_back=True, first=first)
        for fd in fds:
            try:
                self._memories[link] = PeerMemory(fd, partial(self._release, link))
            except OSError as error:
                logger.info("a worker's large bodies come through the socket: %s", error)
        return link

    def link_opened(self, link: Link) -> None:
        """See `service.split.frames.Owner`."""
        self._links[link] = {}
        self._told[link] = {}
        self._no_clients.clear()
        self._send_state(link)

    def link_lost(self, link: Link) -> None:
        """See `service.split.frames.Owner`: cancels the client's calls. The link may not be open yet."""
        self._told.pop(link, None)
        self._memories.pop(link, None)  # unmapped once no batch has rows in it
        for number, call in self._links.pop(link, {}).items():
            call.cancel_one(number)
        if not self._links:
            self._no_clients.set()

    def _send_state(self, link: Link) -> None:
        predictor = self._predictor
        state = State(self._instance, predictor.ready(), self._max_request_rows, predictor.models())
        link.allow_body(state.input_bytes())
        link.send(Kind.STATE, messages.state_header(state))

    def frame_received(self, link: Link, frame: Frame) -> None:
        """See `service.split.frames.Owner`."""
        if frame.kind == Kind.INFER:
            self._infer(link, *messages.read_group(frame))
            return
        if frame.kind == Kind.INFER_SHARED:
            self._infer(link, *messages.read_group(self._in_memory(link, frame)))
            return
        if frame.kind == Kind.MEMORY:
            self._acknowledge(link, messages.read_number(frame))
            return
        number = messages.read_id(frame)
        if frame.kind == Kind.CANCEL:
            call = self._links[link].pop(number, None)
            if call is not None:
                call.cancel_one(number)
        elif frame.kind == Kind.RELOAD:
            task = asyncio.get_running_loop().create_task(self._reload(link, number))
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)
        elif frame.kind == Kind.METRICS:
            header = messages.metrics_header(number, self._instance, list(self._collect()))
            link.send(Kind.REPLY, header)
        elif frame.kind == Kind.PING:
            link.send(Kind.REPLY, [number])
        else:
            raise FrameError(f"frame is of kind {frame.kind}, expected one that a client sends")

    def _acknowledge(self, link: Link, size: int) -> None:
        memory = self._memories.get(link)
        if memory is not None:
            if memory.size != size:
                raise FrameError(f"memory has {memory.size} bytes, expected {size}")
            link.send(Kind.MEMORY, [size])

    def _in_memory(self, link: Link, frame: Frame) -> Frame:
        """Return the INFER whose body is in memory. Raises FrameError."""
        offset, size, header = messages.read_shared(frame)
        memory = self._memories.get(link)
        if memory is None or frame.body:
            raise FrameError("body is in shared memory, expected it in the frame")
        return Frame(Kind.INFER, header, memory.body(offset, size))

    def _release(self, link: Link, offset: int) -> None:
        """Tell a worker that nothing here refers to a body any more; called in any thread."""
        if link not in self._memories:
            return  # it is lost
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if threading.get_ident() == self._thread:
                link.send(Kind.RELEASE, [offset])
            else:
                self._loop.call_soon_threadsafe(link.send, Kind.RELEASE, [offset])

    def _infer(self, link: Link, numbers: list[int], group: RequestGroup) -> None:
        calls = self._links[link]
        if not calls.keys().isdisjoint(numbers) or len(set(numbers)) < len(numbers):
            raise FrameError(f"two calls have the same id among {numbers}, expected others")
        call = _Call(group, numbers, len(numbers))
        calls.update(dict.fromkeys(numbers, call))
        answer = partial(self._answer, link, call)
        try:
            if len(numbers) > 1:
                call.cancel = self._predictor.submit_group(group, answer)
            else:
                (request,) = group.requests()
                cancel = self._predictor.submit(request, partial(answer, 0, 1))
                call.cancel = lambda _: cancel()
        except Exception as error:  # the requests' edge
            self._answer(link, call, 0, len(numbers), error)

    def _answer(self, link: Link, call: "_Call", first: int, last: int, outcome: Outcome) -> None:
        numbers = call.numbers[first:last]
        calls = self._links[link]
        # One is missing if it was cancelled when a batch had it.
        call.note_settled(sum(calls.pop(number, None) is not None for number in numbers))
        if isinstance(outcome, Exception):
            for number in numbers:
                _send_error(link, number, outcome)
            if isinstance(outcome, QueueFull):
                self._send_queue(link, call.group, rejected=True)
        else:
            rows = call.group.rows[first:last]
            link.send(Kind.RESULTS, messages.results_header(numbers, rows, outcome), outcome.outputs)
            self._send_queue(link, call.group)

    def _send_queue(self, link: Link, group: RequestGroup, *, rejected: bool = False) -> None:
        """Tell a worker the state of a model's queue, unless it knows, or was told a moment ago."""
        key = group.model, group.version
        try:
            state = self._predictor.queue_state(*key)
        except ModelNotFound:
            state = None
        told, now = self._told[link], time.monotonic()
        if state is None:
            if told.pop(key, None) is None:
                return
        elif not rejected and now - told.get(key, -math.inf) < QUEUE_SECONDS:
            return
        else:
            told[key] = now
        link.send(Kind.QUEUE, messages.queue_header(*key, state))

    async def _reload(self, link: Link, number: int) -> None:
        try:
            problems = await self.reload()
        except Exception as error:  # the request's edge
            _send_error(link, number, error)
            return
        link.send(Kind.REPLY, [number, problems])


@dataclass(slots=True)
class _Call:
    """The requests of one frame. waiting: those without an outcome. cancel: set once they are submitted."""

    group: RequestGroup
    numbers: list[int]
    waiting: int
    cancel: CancelOne = lambda _: None

    def cancel_one(self, number: int) -> None:
        """Cancel the request of the call with this id."""
        self.cancel(self.numbers.index(number))
        self.note_settled(1)

    def note_settled(self, requests: int) -> None:
        """Note that so many requests more have an outcome, or are cancelled.

        `cancel` refers to the queue's item, and that to this object: cleared with the last one, or the
        reference cycle would keep the rows until the next collection.
        """
        self.waiting -= requests
        if not self.waiting:
            self.cancel = lambda _: None


def bind_unix(path: Path) -> socket.socket:
    """Bind a socket that only this user can open; replaces a dead engine's.

    Raises InkserveError if the path is unavailable, or if an engine answers there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _remove_dead(path)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise InkserveError(f"socket {path} cannot be listened on: {error}") from error
    finally:
        os.umask(before)
    return listener


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "an engine answers there")
    path.unlink()


def _send_error(link: Link, number: int, error: Exception) -> None:
    if not isinstance(error, InkserveError):
        logger.exception("a request failed", exc_info=error)
    link.send(Kind.ERROR, messages.error_header(number, error))
