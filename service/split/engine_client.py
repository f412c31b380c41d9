"""The predictor in another process, as an HTTP worker sees it: one socket, and an id for each call.

The models and readiness are answered from memory: the engine sends its state on connecting and at every
change. `engine_server` is the other end.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import Metric

from service.batching.request import Array, Done, InferenceRequest, Priority
from service.batching.retries import Refusal
from service.errors import FrameError, ModelNotReady, ShuttingDown, Unavailable
from service.models.catalogue import Catalogue
from service.serving.checks import check_inputs
from service.serving.predictor import Cancel, resolve
from service.split import messages
from service.split.frames import Frame, Link
from service.split.messages import Kind, State

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.1
PING_SECONDS = 1.0
MISSED_PINGS = 10
"""The engine counts as hung after this many pings without a frame in return."""


class EngineClient:
    """The predictor behind a Unix socket. Connects by itself, and again whenever the engine exits.

    While it is not connected, calls raise ModelNotReady at once; so do pending calls when the connection is
    lost.
    on_lost: called each time the connection is lost.
    """

    def __init__(
        self, path: Path, on_lost: Callable[[], None] = lambda: None, ping_seconds: float = PING_SECONDS
    ) -> None:
        self._path = path
        self._ping_seconds = ping_seconds
        self._on_lost = on_lost
        self._link: Link | None = None
        self._state: State | None = None
        self._waiting: dict[int, Callable[[Frame | Exception], None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._missed_pings = 0
        self._accepting = True
        self._keeping = asyncio.ensure_future(self._keep_connected())

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Run a request's rows; see `Predictor.submit`. The outputs are read-only."""
        del admitted
        manifest = self.models().find(request.model, request.version).manifest
        assert self._state is not None
        # The engine checks again, against what it serves by then; but do not send an invalid request: an
        # oversized frame makes the engine drop the connection for all.
        check_inputs(manifest, request.inputs, self._state.max_request_rows)
        number = next(self._numbers)
        header = messages.request_header(number, request)
        self._send(Kind.INFER, number, header, tuple(request.inputs.values()), partial(_deliver, done))
        return partial(self._cancel, number)

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> Refusal | None:
        """Return None, because only the engine knows its queue; see `Predictor.check_admission`."""
        del model, version, rows, seconds, priority
        return None

    def note_rejection(self, model: str, version: int | None, refusal: Refusal, rows: int) -> float:
        """Never called, because nothing is rejected here; see `Predictor.note_rejection`."""
        raise NotImplementedError

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
        return messages.read_lines(await self._ask(Kind.RELOAD, number, [number]))

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Return the id of the engine's run, and its current metrics."""
        number = next(self._numbers)
        return messages.read_metrics(await self._ask(Kind.METRICS, number, [number]))

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

    async def _ask(self, kind: Kind, number: int, header: object) -> Frame:
        """Send, and wait for the reply. Raises the error if the reply is one."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._send(kind, number, header, (), partial(resolve, future))
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(number)
            raise

    def _send(
        self,
        kind: Kind,
        number: int,
        header: object,
        arrays: Sequence[Array],
        settle: Callable[[Frame | Exception], None],
    ) -> None:
        """Send now, or once the engine has read what was sent before. Raises ModelNotReady."""
        link = self._link
        if link is None:
            raise ModelNotReady("the engine is not connected, it is being restarted")
        self._waiting[number] = settle
        if link.is_writable:
            link.send(kind, header, arrays)
            return
        task = asyncio.ensure_future(self._send_later(link, kind, number, header, arrays))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send_later(
        self, link: Link, kind: Kind, number: int, header: object, arrays: Sequence[Array]
    ) -> None:
        await link.writable()
        if number in self._waiting:  # it was not cancelled meanwhile, and has not failed with its link
            link.send(kind, header, arrays)

    def _cancel(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None and self._link is not None:
            self._link.send(Kind.CANCEL, [number])

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            link = Link(self)
            try:
                await loop.create_unix_connection(lambda link=link: link, str(self._path))  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._lost.clear()
            await self._watch(link)

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
            try:
                await asyncio.wait_for(self._lost.wait(), self._ping_seconds)
            except TimeoutError:
                continue

    def frame_received(self, link: Link, frame: Frame) -> None:
        """See `service.split.frames.Owner`."""
        self._missed_pings = 0
        if frame.kind == Kind.REPLY or frame.kind == Kind.ERROR:
            settle = self._waiting.pop(messages.read_id(frame), None)
            if settle is not None:  # it was not cancelled
                settle(frame if frame.kind == Kind.REPLY else messages.read_error(frame))
        elif frame.kind == Kind.STATE:
            self._state = messages.read_state(frame)
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
            self._link = None
            self._connected.clear()
            self._fail_all(ModelNotReady, "the engine has exited, it is being restarted")
            self._on_lost()

    def _fail_all(self, kind: type[Unavailable], message: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for settle in waiting.values():
            settle(kind(message))


def _deliver(done: Done, reply: Frame | Exception) -> None:
    done(reply if isinstance(reply, Exception) else messages.read_result(reply))
