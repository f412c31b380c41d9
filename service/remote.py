"""The predictor that lives in another process, seen from HTTP: one socket, calls told apart by an id.

Answers of models and readiness come from memory: the engine sends its state on connecting and at
every change. The other end is `service.host`.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client import Metric

from service import messages
from service.errors import FrameError, ModelNotReady, ShuttingDown, Unavailable
from service.frames import Frame, Link
from service.messages import Kind, State
from service.predictor import Array, Catalogue, Inference, check_inputs
from service.traceparent import current_traceparent

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.1
PING_SECONDS = 1.0
MISSED_PINGS = 10
"""So many pings in a row without any frame in between, and the engine counts as hung."""


class RemotePredictor:
    """The predictor behind a Unix socket. Connects by itself, and again whenever the engine went away.

    While it is not connected, calls raise ModelNotReady at once; those that wait when the connection
    is lost, too. on_lost: called each time that happens.
    """

    def __init__(
        self, path: Path, on_lost: Callable[[], None] = lambda: None, ping_seconds: float = PING_SECONDS
    ) -> None:
        self._path = path
        self._ping_seconds = ping_seconds
        self._on_lost = on_lost
        self._link: Link | None = None
        self._state: State | None = None
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._numbers = itertools.count(1)
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._missed_pings = 0
        self._welcome = True
        self._keeping = asyncio.ensure_future(self._keep_connected())

    async def infer(
        self, model: str, version: int | None, inputs: Mapping[str, Array], deadline: float
    ) -> Inference:
        """Run a request's rows; see `Predictor.infer`. The outputs are read-only."""
        manifest = self.models().find(model, version).manifest
        assert self._state is not None
        # The engine checks again, against what it serves by then; but a request that no model takes
        # must not cross, for a frame beyond the limit would cost all the others their connection.
        check_inputs(manifest, inputs, self._state.max_request_rows)
        number = next(self._numbers)
        header = messages.request_header(number, model, version, inputs, deadline, current_traceparent.get())
        reply = await self._ask(Kind.INFER, number, header, tuple(inputs.values()))
        return messages.read_inference(reply)

    def models(self) -> Catalogue:
        """The models that are being served now. Raises ModelNotReady if that was never known."""
        if self._state is None:
            raise ModelNotReady("the engine is not connected yet")
        return self._state.models

    def ready(self) -> bool:
        """Whether the engine is connected and ready, and new work is accepted."""
        return self._welcome and self._link is not None and self._state is not None and self._state.ready

    async def reload(self) -> list[str]:
        """Have the engine bring its models in line with the folder; see `Predictor.reload`."""
        number = next(self._numbers)
        return messages.read_lines(await self._ask(Kind.RELOAD, number, [number]))

    async def metrics(self) -> tuple[str, list[Metric]]:
        """The engine's own metrics now, and the run of it that counted them."""
        number = next(self._numbers)
        return messages.read_metrics(await self._ask(Kind.METRICS, number, [number]))

    async def connected(self) -> None:
        """Wait until there is an engine and its models are known."""
        await self._connected.wait()

    def stop_being_ready(self) -> None:
        """Tell load balancers to send no more, while what they send is still answered."""
        self._welcome = False

    async def close(self) -> None:
        """Disconnect; what still waits raises ShuttingDown."""
        self._keeping.cancel()
        self._fail_all(ShuttingDown, "the service has ended")
        if self._link is not None:
            self._link.close()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def _ask(self, kind: Kind, number: int, header: object, arrays: Sequence[Array] = ()) -> Frame:
        """Send, and wait for the answer. Raises the error that it may be."""
        if self._link is not None:
            await self._link.writable()
        link = self._link  # only now: it may have gone while we waited
        if link is None:
            raise ModelNotReady("the engine is not connected, it is being started again")
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        link.send(kind, header, arrays)
        try:
            return await future
        except asyncio.CancelledError:
            link.send(Kind.CANCEL, [number])
            raise
        finally:
            self._waiting.pop(number, None)

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
        """Ping until the link is lost; a peer that never says anything more is hung."""
        self._missed_pings = 0
        while not self._lost.is_set():
            if self._missed_pings >= MISSED_PINGS:
                logger.error("the engine is silent, its connection is closed")
                link.abort()
            # Counted, not timed: after a pause of the whole container nobody is late.
            self._missed_pings += 1
            link.send(Kind.PING, [0])
            try:
                await asyncio.wait_for(self._lost.wait(), self._ping_seconds)
            except TimeoutError:
                continue

    def frame_received(self, link: Link, frame: Frame) -> None:
        """See `service.frames.Owner`."""
        self._missed_pings = 0
        if frame.kind == Kind.REPLY or frame.kind == Kind.ERROR:
            future = self._waiting.get(messages.read_id(frame))
            if future is None or future.done():
                return  # cancelled meanwhile
            if frame.kind == Kind.REPLY:
                future.set_result(frame)
            else:
                future.set_exception(messages.read_error(frame))
        elif frame.kind == Kind.STATE:
            self._state = messages.read_state(frame)
            link.allow_body(self._state.output_bytes())
            self._link = link
            self._connected.set()
        else:
            raise FrameError(f"frame is of kind {frame.kind}, expected a reply, an error or a state")

    def link_opened(self, link: Link) -> None:
        """See `service.frames.Owner`; the link is of use once the engine has told its state."""

    def link_lost(self, link: Link) -> None:
        """See `service.frames.Owner`."""
        self._lost.set()
        if self._link is link:
            self._link = None
            self._connected.clear()
            self._fail_all(ModelNotReady, "the engine has gone, it is being started again")
            self._on_lost()

    def _fail_all(self, kind: type[Unavailable], message: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(kind(message))
