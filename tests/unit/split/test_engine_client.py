"""Both ends of the seam between processes, over a real Unix socket, with real models."""

import asyncio
import gc
import math
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.batching.items import Item
from service.batching.mirror import QueueState
from service.batching.request import (
    Done,
    GroupDone,
    InferenceRequest,
    InferenceResult,
    Priority,
    RequestGroup,
)
from service.batching.retries import Refusal
from service.errors import (
    DeadlineExceeded,
    EngineError,
    InkserveError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    PayloadTooLarge,
    QueueFull,
    ShuttingDown,
)
from service.models.catalogue import Catalogue
from service.models.tensors import Array
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel, CancelOne, Predictor, infer
from service.settings import Settings
from service.split import messages
from service.split.engine_client import MISSED_PINGS, EngineClient
from service.split.engine_server import EngineServer, bind_unix
from service.split.frames import PREFIX, frame_pieces
from service.split.messages import ERRORS
from service.split.metric_totals import registry_of
from tests.support.models import LATENT
from tests.support.requests import request_for

Start = Callable[..., Awaitable["Engine"]]
Connect = Callable[..., Awaitable[EngineClient]]

MAX_ROWS = 40


class Engine:
    """What the engine's process holds, in this one."""

    def __init__(self, predictor: LocalPredictor, server: EngineServer, metrics: Metrics) -> None:
        self.predictor = predictor
        self.server = server
        self.metrics = metrics

    def rows_waiting(self) -> float | None:
        labels = {"model": "first-pixel"}
        return self.metrics.registry.get_sample_value("inkserve_rows_waiting", labels)

    async def close(self) -> None:
        await self.predictor.close()
        await self.server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
async def start_engine(
    add_classifier: Callable[..., Path],
    add_generator: Callable[..., Path],
    tmp_path: Path,
    path: Path,
) -> AsyncIterator[Start]:
    """Starts an engine over a classifier and a generator."""
    (add_classifier() / "README.md").write_text("# A card\n")
    add_generator()
    engines: list[Engine] = []

    async def start(**settings: Any) -> Engine:
        settings = {"max_batch_size": 8, "max_request_rows": MAX_ROWS} | settings
        metrics = Metrics()
        predictor = LocalPredictor(Settings(models_dir=tmp_path, **settings), metrics)
        await predictor.start()
        engine = Engine(predictor, EngineServer(predictor, MAX_ROWS, metrics.registry.collect), metrics)
        engines.append(engine)
        await engine.server.start(path)
        return engine

    yield start
    for engine in engines:
        await engine.close()


@pytest.fixture
async def connect(start_engine: Start, path: Path) -> AsyncIterator[Connect]:  # noqa: ARG001, closes before it
    """Connects a predictor to the engine."""
    predictors: list[EngineClient] = []

    async def connect(wait: bool = True, **options: Any) -> EngineClient:
        predictor = EngineClient(path, **options)
        predictors.append(predictor)
        if wait:
            await asyncio.wait_for(predictor.connected(), 60)
        return predictor

    yield connect
    for predictor in predictors:
        await predictor.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def images(*first_pixels: int) -> dict[str, Array]:
    batch = np.zeros((len(first_pixels), 28, 28), np.uint8)
    batch[:, 0, 0] = first_pixels
    return {"images": batch}


def latents(rows: int, label: int = 7) -> dict[str, Array]:
    z = np.random.default_rng(1).normal(size=(rows, LATENT)).astype(np.float32)
    return {"z": z, "label": np.full(rows, label, np.int64)}


async def classify(predictor: Predictor, *first_pixels: int, seconds: float = 60) -> InferenceResult:
    return await infer(
        predictor, request_for("first-pixel", None, images(*first_pixels), time.monotonic() + seconds)
    )


async def test_answers_are_those_of_the_engine(start_engine: Start, connect: Connect) -> None:
    engine = await start_engine()
    predictor = await connect()
    for model, inputs in [("first-pixel", images(3, 1, 4)), ("ramp", latents(MAX_ROWS))]:
        there = await infer(predictor, request_for(model, 1, inputs, time.monotonic() + 60))
        here = await infer(engine.predictor, request_for(model, 1, inputs, time.monotonic() + 60))
        assert there.version == here.version
        assert len(there.outputs) == len(here.outputs)
        for far, near in zip(there.outputs, here.outputs, strict=True):
            assert far.dtype == near.dtype
            assert np.array_equal(far, near)
        assert there.compute_seconds > 0
    assert list(predictor.models()) == list(engine.predictor.models())
    assert predictor.models().find("first-pixel").card == "# A card\n"
    sizes = [info.batch_sizes for info in predictor.models()]
    assert all(sizes)
    assert sizes == [info.batch_sizes for info in engine.predictor.models()]
    assert predictor.ready()


async def test_many_calls_at_once_never_get_each_others_answers(
    start_engine: Start, connect: Connect
) -> None:
    await start_engine()
    predictors = [await connect(), await connect()]
    numbers = list(range(200))
    answers = await asyncio.gather(*(classify(predictors[n % 2], *[n % 10] * (1 + n % 11)) for n in numbers))
    for number, answer in zip(numbers, answers, strict=True):
        labels = answer.outputs[0].argmax(axis=1).tolist()
        assert labels == [number % 10] * (1 + number % 11)


async def test_a_batch_holds_several_clients_rows(start_engine: Start, connect: Connect) -> None:
    await start_engine(max_batch_size=2, max_batch_delay_seconds=10)
    answers = await asyncio.gather(classify(await connect(), 3), classify(await connect(), 5))
    assert [answer.batch_rows for answer in answers] == [2, 2]
    assert [int(answer.outputs[0].argmax()) for answer in answers] == [3, 5]


@pytest.mark.parametrize(
    ("model", "version", "inputs", "kind"),
    [
        ("nobody", None, images(1), ModelNotFound),
        ("first-pixel", 7, images(1), ModelNotFound),
        ("first-pixel", None, {"pixels": images(1)["images"]}, InvalidInput),
        ("first-pixel", None, {"images": images(1)["images"].astype(np.float16)}, InvalidInput),
        ("first-pixel", None, images(), InvalidInput),
        ("first-pixel", None, images(*[0] * (MAX_ROWS + 1)), PayloadTooLarge),
        ("ramp", None, latents(1, label=10), InvalidInput),
    ],
)
async def test_a_bad_call_gets_the_error_that_it_would_get_here(
    start_engine: Start,
    connect: Connect,
    model: str,
    version: int | None,
    inputs: dict[str, Array],
    kind: type[InkserveError],
) -> None:
    engine = await start_engine()
    predictor = await connect()
    deadline = time.monotonic() + 60
    with pytest.raises(kind) as there:
        await infer(predictor, request_for(model, version, inputs, deadline))
    with pytest.raises(kind) as here:
        await infer(engine.predictor, request_for(model, version, inputs, deadline))
    assert str(there.value) == str(here.value)
    assert predictor.ready()


class Failing:
    """A predictor whose calls fail; its models are another's."""

    def __init__(self, models: Catalogue, error: Exception) -> None:
        self._models = models
        self._error = error

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        del request, admitted
        waiting = asyncio.get_running_loop().call_soon(done, self._error)
        return waiting.cancel

    def memory(self, size: int) -> memoryview | None:
        raise NotImplementedError

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> Refusal | None:
        raise NotImplementedError

    def note_rejection(self, model: str, version: int | None, refusal: Refusal, rows: int) -> float:
        raise NotImplementedError

    def models(self) -> Catalogue:
        return self._models

    def submit_group(self, _: RequestGroup, __: GroupDone) -> CancelOne:
        raise self._error

    def queue_state(self, _: str, __: int | None) -> QueueState | None:
        return None

    def ready(self) -> bool:
        return True

    async def reload(self) -> list[str]:
        raise self._error


@contextmanager
def raises(kind: type[InkserveError], message: str) -> Iterator[None]:
    with pytest.raises(InkserveError) as caught:
        yield
    assert type(caught.value) is kind
    assert str(caught.value) == message


async def test_every_error_of_the_engine_keeps_its_class_and_message(start_engine: Start, path: Path) -> None:
    engine = await start_engine()
    errors: list[tuple[Exception, type[InkserveError], str]] = [
        *((kind(f"a {name}"), kind, f"a {name}") for name, kind in ERRORS.items()),
        (ValueError("a secret"), EngineError, "internal error"),
    ]
    assert len(errors) > 15
    for number, (error, kind, message) in enumerate(errors):
        failing = EngineServer(Failing(engine.predictor.models(), error), MAX_ROWS, list)
        await failing.start(path.with_suffix(f".{number}"))
        predictor = EngineClient(path.with_suffix(f".{number}"))
        await predictor.connected()
        with raises(kind, message):
            await classify(predictor, 1)
        for outcome in await asyncio.gather(
            *(classify(predictor, 1) for _ in range(2)), return_exceptions=True
        ):
            assert (type(outcome), str(outcome)) == (kind, message)
        with raises(kind, message):
            await predictor.reload()
        await predictor.close()
        await failing.close()


async def test_a_cancelled_call_leaves_the_queue(start_engine: Start, connect: Connect) -> None:
    engine = await start_engine(max_batch_delay_seconds=10)
    call = asyncio.ensure_future(classify(await connect(), 1))
    await until(lambda: engine.rows_waiting() == 1)
    call.cancel()
    await until(lambda: engine.rows_waiting() == 0)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_the_calls_of_a_client_that_is_gone_leave_the_queue(
    start_engine: Start, connect: Connect
) -> None:
    engine = await start_engine(max_batch_delay_seconds=10)
    predictor = await connect()
    call = asyncio.ensure_future(classify(predictor, 1))
    await until(lambda: engine.rows_waiting() == 1)
    await predictor.close()
    with pytest.raises(ShuttingDown):
        await call
    await until(lambda: engine.rows_waiting() == 0)


@pytest.mark.slow
async def test_the_rows_of_a_request_that_has_ended_are_freed_at_once(
    start_engine: Start, connect: Connect
) -> None:
    engine = await start_engine(max_batch_delay_seconds=0.2, max_queue_requests=4)
    predictor, leaving = await connect(), await connect()

    def kept() -> bool:
        return any(type(each) is Item for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        await classify(predictor, 1)
        await asyncio.gather(*(classify(predictor, 1) for _ in range(4)))
        with pytest.raises(DeadlineExceeded):
            await classify(predictor, 1, seconds=0.05)
        calls = [asyncio.ensure_future(classify(each, 1, 2)) for each in (predictor, predictor, leaving)]
        await until(lambda: engine.rows_waiting() == 6)
        calls[0].cancel()
        await leaving.close()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: not kept())
    finally:
        gc.enable()


async def test_a_deadline_holds_over_there(start_engine: Start, connect: Connect) -> None:
    await start_engine(max_batch_delay_seconds=10)
    with pytest.raises(DeadlineExceeded, match="1 rows were queued"):
        await classify(await connect(), 1, seconds=0.05)


async def test_calls_fail_at_once_if_the_engine_exits(start_engine: Start, path: Path) -> None:
    engine = await start_engine(max_batch_delay_seconds=10)
    lost = []
    predictor = EngineClient(path, lambda: lost.append(True))
    await predictor.connected()
    calls = [asyncio.ensure_future(classify(predictor, 1)) for _ in range(3)]
    await until(lambda: engine.rows_waiting() == 3)
    for link in list(engine.server._links):
        link.abort()  # as the system does for a process that is killed
    for call in calls:
        with pytest.raises(ModelNotReady, match="the engine has exited"):
            await asyncio.wait_for(call, 5)
    assert lost == [True]
    await predictor.connected()
    answer = classify(predictor, *[6] * 8)
    assert int((await answer).outputs[0][0].argmax()) == 6
    await engine.close()
    await until(lambda: not predictor.ready())
    with pytest.raises(ModelNotReady, match="not connected"):
        await classify(predictor, 1)
    assert predictor.models().find("ramp")
    await start_engine()
    await predictor.connected()
    assert (await classify(predictor, 2)).version == 1
    await predictor.close()


async def test_before_there_is_an_engine_nothing_is_ready(connect: Connect) -> None:
    predictor = await connect(wait=False)
    assert not predictor.ready()
    with pytest.raises(ModelNotReady, match="not connected yet"):
        await classify(predictor, 1)


async def test_an_unresponsive_engine_is_disconnected(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connections: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_unix_server(accept, path)
    predictor = EngineClient(path, ping_seconds=0.001)
    await until(lambda: len(connections) > 1)
    assert "the engine stopped responding" in caplog.text
    await predictor.close()
    for writer in connections:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_an_engine_that_answers_pings_is_kept(start_engine: Start, connect: Connect) -> None:
    await start_engine()
    predictor = await connect(ping_seconds=0.001)
    for _ in range(3 * MISSED_PINGS):
        await predictor.metrics()
        await asyncio.sleep(0.001)
    assert predictor.ready()


async def test_every_client_is_notified_of_a_reload(
    start_engine: Start, connect: Connect, add_classifier: Callable[..., Path]
) -> None:
    await start_engine()
    asking, other = await connect(), await connect()
    folder = add_classifier(version=2)
    assert await asking.reload() == []
    assert asking.models().find("first-pixel").manifest.version == 2
    await until(lambda: other.models().find("first-pixel").manifest.version == 2)
    add_classifier(version=3).joinpath("model.onnx").write_bytes(b"broken")
    (problem,) = await asking.reload()
    assert "expects" in problem
    assert folder.is_dir()


async def test_clients_are_notified_before_the_engine_stops(start_engine: Start, connect: Connect) -> None:
    engine = await start_engine()
    predictor = await connect()
    engine.predictor.stop_being_ready()
    engine.server.send_state()
    await until(lambda: not predictor.ready())
    assert (await classify(predictor, 4)).version == 1
    await predictor.close()
    await asyncio.wait_for(engine.server.wait_until_no_clients(), 60)


async def test_the_engines_metrics_are_returned(start_engine: Start, connect: Connect) -> None:
    await start_engine()
    predictor = await connect()
    await classify(predictor, 1, 2)
    _, families = await predictor.metrics()
    labels = {"model": "first-pixel", "version": "1"}
    assert registry_of(families).get_sample_value("inkserve_rows_total", labels) == 2


async def test_an_oversized_frame_closes_only_its_senders_connection(
    start_engine: Start, connect: Connect, path: Path
) -> None:
    await start_engine()
    predictor = await connect()
    largest = MAX_ROWS * (784 + 4 * LATENT + 8)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(PREFIX.pack(1, 2, largest + 1))
    await reader.read()  # until the end: its state, then nothing more
    assert reader.at_eof()
    writer.close()
    assert (await classify(predictor, *[1] * MAX_ROWS)).version == 1


def infer_frame(number: int) -> bytes:
    group = RequestGroup("first-pixel", None, images(1, 2), [1] * 2, [math.inf] * 2)
    header = messages.group_header([number, number + 1], group)
    return b"".join(frame_pieces(messages.Kind.INFER, header, tuple(group.inputs.values())))


@pytest.mark.parametrize(
    "sent",
    [
        infer_frame(7) * 2,
        b"".join(frame_pieces(messages.Kind.STATE, [1])),
        b"".join(frame_pieces(messages.Kind.INFER, [[1], "first-pixel", None, None, [None], [], "urgent"])),
        b"".join(frame_pieces(messages.Kind.INFER, ["no ids"])),
        b"".join(frame_pieces(99, [1])),
    ],
    ids=["an id twice", "an engine's frame", "no such priority", "no request", "no such kind"],
)
async def test_an_invalid_frame_closes_its_senders_connection(
    start_engine: Start, connect: Connect, path: Path, sent: bytes
) -> None:
    engine = await start_engine(max_batch_delay_seconds=10)
    predictor = await connect()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    await asyncio.wait_for(reader.read(), 30)  # until the end
    assert reader.at_eof()
    writer.close()
    await until(lambda: engine.rows_waiting() == 0)  # what it had queued is gone with it
    call = asyncio.ensure_future(classify(predictor, *range(8)))
    assert (await asyncio.wait_for(call, 30)).version == 1


def mode(path: Path) -> int | None:
    """The permissions of a file, None if there is none."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def test_the_socket_is_for_its_owner_and_for_one_engine(start_engine: Start, path: Path) -> None:
    engine = await start_engine()
    assert mode(path) == 0o600
    with pytest.raises(InkserveError, match="an engine answers there"):
        await start_engine()
    await engine.close()
    assert mode(path) is None
    bind_unix(path).close()  # as if killed: the file is left
    assert mode(path) is not None
    await start_engine()


@pytest.mark.slow
async def test_a_full_queue_is_known_before_a_body_is_read(start_engine: Start, connect: Connect) -> None:
    engine = await start_engine(max_batch_delay_seconds=1, max_batch_size=8, max_queue_requests=4)
    predictor = await connect()
    target = "first-pixel", None, 1, 60.0
    assert predictor.check_admission(*target) is None
    calls = [asyncio.ensure_future(classify(predictor, 1)) for _ in range(4)]
    await until(lambda: engine.rows_waiting() == 4)
    with pytest.raises(QueueFull, match="expected fewer than 4"):
        await classify(predictor, 1)
    refusal = predictor.check_admission(*target)
    assert refusal == Refusal("4 requests are queued, expected fewer than 4")
    assert predictor.note_rejection("first-pixel", None, refusal, 1) >= 1
    assert predictor.check_admission("ramp", None, 1, 60.0) is None
    await asyncio.gather(*calls)
    assert predictor.check_admission(*target) is None


async def test_requests_of_one_turn_share_a_frame_and_keep_their_own_fate(
    start_engine: Start, connect: Connect
) -> None:
    engine = await start_engine(max_queue_requests=8)
    predictor = await connect()
    asked = [(3,), (1, 4), (1, 5, 9), (2,), (6, 5)]
    answers = await asyncio.gather(*(classify(predictor, *pixels) for pixels in asked))
    for pixels, answer in zip(asked, answers, strict=True):
        assert answer.outputs[0].argmax(axis=1).tolist() == list(pixels)
    outcomes = await asyncio.gather(
        classify(predictor, 1, seconds=-1),  # it is late already
        *(classify(predictor, pixel) for pixel in range(10)),
        infer(predictor, request_for("ramp", None, latents(2))),
        return_exceptions=True,
    )
    answered = [outcome for outcome in outcomes[1:9] if isinstance(outcome, InferenceResult)]
    assert [answer.outputs[0].argmax() for answer in answered] == list(range(8))
    assert [type(outcome) for outcome in outcomes[9:]] == [QueueFull, QueueFull, InferenceResult]
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert engine.rows_waiting() == 0


@pytest.mark.slow
async def test_one_request_of_a_frame_is_cancelled_alone(start_engine: Start, connect: Connect) -> None:
    engine = await start_engine(max_batch_delay_seconds=0.5, max_batch_size=8)
    predictor = await connect()
    calls = [asyncio.ensure_future(classify(predictor, pixel)) for pixel in range(5)]
    await until(lambda: engine.rows_waiting() == 5)
    calls[3].cancel()
    await until(lambda: engine.rows_waiting() == 4)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers].count(asyncio.CancelledError) == 1
    labels = [answer.outputs[0].argmax() for answer in answers if isinstance(answer, InferenceResult)]
    assert labels == [0, 1, 2, 4]
