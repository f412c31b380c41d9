"""The predictor in another process, as an HTTP worker sees it: one socket, and an id for each call.

The models and readiness are answered from memory: the engine sends its state on connecting and at every
change. `engine_server` is the other end.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from prometheus_client import Metric

from service.batching.mirror import Mirror, QueueState
from service.batching.request import Array, Done, InferenceRequest, InferenceResult, Priority, RequestGroup
from service.batching.retries import Refusal
from service.errors import FrameError, ModelNotReady, ShuttingDown, Unavailable
from service.models.catalogue import Catalogue
from service.models.manifest import Manifest
from service.serving.checks import InputCheck
from service.serving.predictor import Cancel, resolve
from service.split import messages
from service.split.frames import Frame, Link, frame_pieces
from service.split.messages import Kind, State
from service.split.shared_memory import OwnMemory

logger = logging.getLogger(__name__)

SMALL_BYTES = 16 * 1024
"""Larger requests are sent alone and at once: they gain nothing from company, and would delay it."""

MOST_TOGETHER = 64
"""At most this many requests share a frame: enough to make the cost of the frame itself small."""

SHARED_BYTES = 64 * 1024
"""Larger bodies cross in shared memory. With 50 kB, naming the place and giving it back costs as much as the
copies that it saves (`python -m loadtests.split_cost --images 64 128 256`, against a checkout without it)."""

MEMORY_BYTES = 32 * 1024 * 1024
"""Of each worker: room for 40 bodies of 1,024 images. It takes up only what was in use at once."""

RECONNECT_SECONDS = 0.1
PING_SECONDS = 1.0
MISSED_PINGS = 10
"""The engine counts as hung after this many pings without a frame in return."""


class EngineClient:
    """The predictor behind a Unix socket. Connects by itself, and again whenever the engine exits.

    While it is not connected, calls raise ModelNotReady at once; so do pending calls when the connection is
    lost.
    on_lost: called each time the connection is lost. workers: how many of these send to the engine.
    memory_bytes: of the memory in which large bodies cross, 0 for none.
    """

    def __init__(
        self,
        path: Path,
        on_lost: Callable[[], None] = lambda: None,
        ping_seconds: float = PING_SECONDS,
        workers: int = 1,
        memory_bytes: int = 0,
    ) -> None:
        self._workers = workers
        self._memory_bytes = memory_bytes
        self._offered: OwnMemory | None = None
        self._memory: OwnMemory | None = None
        self._path = path
        self._ping_seconds = ping_seconds
        self._on_lost = on_lost
        self._link: Link | None = None
        self._state: State | None = None
        self._models: dict[tuple[str, int | None], _Model] = {}
        self._groups: dict[tuple[_Model, Priority], _Group] = {}
        self._mirrors: dict[tuple[str, int | None], Mirror] = {}
        self._waiting: dict[int, Callable[[Any], None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._missed_pings = 0
        self._accepting = True
        self._keeping = asyncio.ensure_future(self._keep_connected())

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Run a request's rows; see `Predictor.submit`. The outputs are read-only.

        It is sent at the end of this iteration of the event loop, if it is small: with the others for its
        model, in one frame.
        """
        del admitted
        model = self._model(request)
        # The engine checks again, against what it serves by then; but do not send an invalid request: an
        # oversized frame makes the engine drop the connection for all.
        arrays = model.check.arrays(request.inputs, request.rows)
        if self._link is None:
            raise _not_connected()
        mirror = self._mirrors.get((request.model, request.version))
        if mirror is not None:
            mirror.note_sent(request.rows, request.priority)
        number = next(self._numbers)
        self._waiting[number] = done
        if sum([array.nbytes for array in arrays]) > SMALL_BYTES:
            self._send_group(_Group(model, request.priority).add(number, request, arrays))
        else:
            self._group_for(model, request).add(number, request, arrays)
        return partial(self._cancel, number)

    def _model(self, request: InferenceRequest) -> "_Model":
        """Return what a request is checked against. Raises ModelNotFound, ModelNotReady."""
        key = request.model, request.version
        model = self._models.get(key)
        if model is None:
            manifest = self.models().find(*key).manifest
            assert self._state is not None
            model = self._models[key] = _Model(*key, manifest, self._state.max_request_rows)
        return model

    def _group_for(self, model: "_Model", request: InferenceRequest) -> "_Group":
        """Return the group that takes another small request for this model now."""
        key = model, request.priority
        group = self._groups.get(key)
        if group is None or not group.has_room(request.rows):
            if not self._groups:
                asyncio.get_running_loop().call_soon(self._send_groups)
            elif group is not None:
                self._send_group(group)
            group = self._groups[key] = _Group(*key)
        return group

    def _send_groups(self) -> None:
        groups, self._groups = self._groups, {}
        for group in groups.values():
            self._send_group(group)

    def _send_group(self, group: "_Group") -> None:
        """Send now, or once the engine has read what was sent before."""
        link = self._link
        if link is None:
            return  # its requests have failed with the link
        if link.is_writable:
            self._send_rest(link, group)
            return
        task = asyncio.ensure_future(self._send_group_later(link, group))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send_group_later(self, link: Link, group: "_Group") -> None:
        await link.writable()
        self._send_rest(link, group)

    def _send_rest(self, link: Link, group: "_Group") -> None:
        """Send those requests that were not cancelled meanwhile, and have not failed with their link."""
        if not self._waiting.keys() >= set(group.numbers):
            group = group.only(self._waiting)
        if group.numbers:
            self._send_frame(link, *group.frame())
            link.flush()

    def _send_frame(self, link: Link, header: list[object], arrays: list[Array]) -> None:
        """Send an INFER, with its body in shared memory if that is worth it and has room."""
        memory = self._memory if link is self._link else None
        if memory is not None and sum([array.nbytes for array in arrays]) > SHARED_BYTES:
            place = memory.place(arrays)
            if place is not None:
                link.send(Kind.INFER_SHARED, [*place, *header])
                return
        link.send(Kind.INFER, header, arrays)

    def memory(self, size: int) -> memoryview | None:
        """Return shared memory for a large body, which crosses without a copy; see `Predictor.memory`."""
        if self._memory is None or size <= SHARED_BYTES:
            return None
        array = self._memory.empty(size)
        return None if array is None else array.data

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> Refusal | None:
        """Return the reason why the engine would reject this many rows; see `Predictor.check_admission`.

        It goes by what the engine last told of its queue.
        """
        mirror = self._mirrors.get((model, version))
        if mirror is None:
            return None
        return mirror.check_admission(rows, seconds, priority, time.monotonic())

    def note_rejection(self, model: str, version: int | None, refusal: Refusal, rows: int) -> float:
        """See `Predictor.note_rejection`."""
        mirror = self._mirrors.get((model, version))
        return 1.0 if mirror is None else mirror.note_rejection(refusal, rows, time.monotonic())

    def models(self) -> Catalogue:
        """Return the models that the engine served last. Raises ModelNotReady before the first connection."""
        if self._state is None:
            raise ModelNotReady("the engine is not connected yet")
        return self._state.models

    def ready(self) -> bool:
        """Whether the engine is connected and ready, and new work is accepted."""
        return self._accepting and self._link is not None and self._state is not None and self._state.ready

    async def reload(self) -> list[str]:
        """Have the engine reload its models; see `Predictor.reload`."""
        number = next(self._numbers)
        return messages.read_lines(await self._ask(Kind.RELOAD, number))

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Return the id of the engine's run, and its current metrics."""
        number = next(self._numbers)
        return messages.read_metrics(await self._ask(Kind.METRICS, number))

    async def connected(self) -> None:
        """Wait until an engine is connected and its models are known."""
        await self._connected.wait()

    def stop_being_ready(self) -> None:
        """Report unready, so that load balancers stop sending; requests are still answered."""
        self._accepting = False

    async def close(self) -> None:
        """Disconnect; pending calls raise ShuttingDown."""
        self._keeping.cancel()
        self._fail_all(ShuttingDown, "the service has stopped")
        if self._link is not None:
            self._link.close()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def _ask(self, kind: Kind, number: int) -> Frame:
        """Send, and wait for the reply. Raises the error if the reply is one."""
        link = self._link
        if link is None:
            raise _not_connected()
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = partial(resolve, future)
        try:
            await link.writable()
            link.send(kind, [number])
            return await future
        except asyncio.CancelledError:
            self._cancel(number)
            raise

    def _cancel(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None and self._link is not None:
            self._link.send(Kind.CANCEL, [number])

    async def _keep_connected(self) -> None:
        while True:
            link = Link(self)
            try:
                await self._connect(link)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._lost.clear()
            await self._watch(link)

    async def _connect(self, link: Link) -> None:
        """Connect, and offer the engine new memory. Raises OSError."""
        with contextlib.ExitStack() as undo:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(connection.close)
            connection.setblocking(False)
            connection.connect(str(self._path))  # at once, or never
            self._offered = self._offer_memory(connection) if self._memory_bytes else None
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=connection)
            undo.pop_all()  # the transport closes it

    def _offer_memory(self, connection: socket.socket) -> OwnMemory | None:
        """Send the engine the descriptor of memory, before the transport, which could not."""
        try:
            memory = OwnMemory(self._memory_bytes)
            try:
                socket.send_fds(connection, frame_pieces(Kind.MEMORY, [memory.size]), [memory.fd])
            finally:
                memory.close_fd()
        except ConnectionError:  # the engine has exited
            raise
        except OSError as error:
            logger.info("large bodies cross through the socket, because memory cannot be shared: %s", error)
            self._memory_bytes = 0
            return None
        return memory

    async def _watch(self, link: Link) -> None:
        """Ping until the link is lost; close it if the peer sends nothing, because then it is hung."""
        self._missed_pings = 0
        while not self._lost.is_set():
            if self._missed_pings >= MISSED_PINGS:
                logger.error("the engine stopped responding; closing its connection")
                link.abort()
            # Counted, not timed: a pause of the whole container must not count as a hang.
            self._missed_pings += 1
            link.send(Kind.PING, [0])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ping_seconds):
                    await self._lost.wait()

    def frame_received(self, link: Link, frame: Frame) -> None:
        """See `service.split.frames.Owner`."""
        self._missed_pings = 0
        if frame.kind == Kind.RESULTS:
            for number, result in messages.read_results(frame):
                self._settle(number, result)
        elif frame.kind == Kind.ERROR:
            self._settle(messages.read_id(frame), messages.read_error(frame))
        elif frame.kind == Kind.RELEASE and self._memory is not None:
            self._memory.release(messages.read_number(frame))
        elif frame.kind == Kind.QUEUE:
            self._note_queue(*messages.read_queue(frame))
        elif frame.kind == Kind.REPLY:
            self._settle(messages.read_id(frame), frame)
        elif frame.kind == Kind.MEMORY:
            self._memory, self._offered = self._offered, None
        elif frame.kind == Kind.STATE:
            self._state = messages.read_state(frame)
            self._models, self._mirrors = {}, {}
            link.allow_body(self._state.output_bytes())
            self._link = link
            self._connected.set()
        else:
            raise FrameError(f"frame is of kind {frame.kind}, expected a reply, an error or a state")

    def link_opened(self, link: Link) -> None:
        """See `service.split.frames.Owner`; the link is used once the engine has sent its state."""

    def link_lost(self, link: Link) -> None:
        """See `service.split.frames.Owner`."""
        self._lost.set()
        if self._link is link:
            self._link = self._memory = self._offered = None
            self._connected.clear()
            self._fail_all(ModelNotReady, "the engine has exited, it is being restarted")
            self._on_lost()

    def _note_queue(self, model: str, version: int | None, state: QueueState | None) -> None:
        key, now = (model, version), time.monotonic()
        mirror = self._mirrors.get(key)
        if state is None:
            self._mirrors.pop(key, None)
        elif mirror is None:
            self._mirrors[key] = Mirror(state, now, self._workers)
        else:
            mirror.update(state, now)

    def _settle(self, number: int, outcome: "InferenceResult | Exception | Frame") -> None:
        """Hand what the engine has sent to the call that waits for it, unless that was cancelled."""
        settle = self._waiting.pop(number, None)
        if settle is not None:
            try:
                settle(outcome)
            except Exception:  # the other results in the frame must not be lost with it
                logger.exception("a request's outcome could not be delivered")

    def _fail_all(self, kind: type[Unavailable], message: str) -> None:
        waiting, self._waiting = self._waiting, {}
        self._groups, self._mirrors = {}, {}
        for settle in waiting.values():
            settle(kind(message))


class _Model:
    """A model that the engine serves, as requests are checked against it. version: as they name it."""

    def __init__(self, name: str, version: int | None, manifest: Manifest, max_rows: int) -> None:
        self.name = name
        self.version = version
        self.max_rows = max_rows
        self.check = InputCheck(manifest, max_rows)


class _Group:
    """Requests for one model that are sent in one frame."""

    def __init__(self, model: _Model, priority: Priority) -> None:
        self.numbers: list[int] = []
        self._model = model
        self._priority = priority
        self._requests: list[InferenceRequest] = []
        self._arrays: list[tuple[Array, ...]] = []
        self._rows = 0

    def has_room(self, rows: int) -> bool:
        """Whether the engine accepts a frame with this many rows more, and it is not large yet."""
        return len(self.numbers) < MOST_TOGETHER and self._rows + rows <= self._model.max_rows

    def add(self, number: int, request: InferenceRequest, arrays: tuple[Array, ...]) -> Self:
        """Add a request. number: its call's id. arrays: its inputs in the order of the manifest."""
        self.numbers.append(number)
        self._requests.append(request)
        self._arrays.append(arrays)
        self._rows += request.rows
        return self

    def only(self, numbers: Container[int]) -> "_Group":
        """Return the group of only those of its requests whose calls have these ids."""
        rest = _Group(self._model, self._priority)
        for each in zip(self.numbers, self._requests, self._arrays, strict=True):
            if each[0] in numbers:
                rest.add(*each)
        return rest

    def frame(self) -> tuple[list[object], list[Array]]:
        """Return the header and the arrays of the frame."""
        columns = zip(*self._arrays, strict=True)
        arrays = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in columns]
        traceparents = [request.traceparent for request in self._requests]
        group = RequestGroup(
            self._model.name,
            self._model.version,
            {name: array for (name, _, _), array in zip(self._model.check.tensors, arrays, strict=True)},
            [request.rows for request in self._requests],
            [request.deadline for request in self._requests],
            self._priority,
            traceparents if any(traceparents) else None,
        )
        return messages.group_header(self.numbers, group), arrays


def _not_connected() -> ModelNotReady:
    return ModelNotReady("the engine is not connected, it is being restarted")
