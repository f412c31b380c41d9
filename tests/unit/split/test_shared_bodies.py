"""Large bodies between a worker and the engine, in shared memory: over a real socket, with a real model.

`test_killed_halves` kills either end.
"""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.batching import batcher
from service.batching.request import InferenceResult, RequestGroup
from service.errors import DeadlineExceeded, EngineError, QueueFull
from service.models.tensors import Array
from service.observability.metrics import Metrics
from service.onnx.engine import Engine
from service.serving.local import LocalPredictor
from service.serving.predictor import infer
from service.settings import Settings
from service.split import messages
from service.split.engine_client import SHARED_BYTES, EngineClient
from service.split.engine_server import EngineServer
from service.split.frames import frame_pieces
from service.split.messages import Kind
from service.split.shared_memory import PAGE_BYTES, OwnMemory
from tests.support.http import exchange, request
from tests.support.listener import listening
from tests.support.live import RAW_ANSWER, connected
from tests.support.models import LATENT
from tests.support.requests import request_for

ROWS = 100
BODY_BYTES = ROWS * 784
"""Of a large request; it takes twenty pages."""

MEMORY_BYTES = 4 * 20 * PAGE_BYTES
"""Room for four."""

Place = tuple[int, int] | None


class Halves:
    """The engine's half and a worker's, in this process. placed: where the worker has put large bodies."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.predictor = LocalPredictor(settings, Metrics())
        self.server = EngineServer(self.predictor, settings.max_request_rows, list)
        self.client = EngineClient(path, memory_bytes=MEMORY_BYTES)
        self.placed: list[Place] = []

    async def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.predictor.start()
        await self.server.start(self.path)
        await until(lambda: self.client._memory is not None)
        place = self.memory.place

        def spy(arrays: Sequence[Array]) -> Place:
            self.placed.append(place(arrays))
            return self.placed[-1]

        monkeypatch.setattr(self.memory, "place", spy)

    async def close(self) -> None:
        await self.client.close()
        await self.predictor.close()
        await self.server.close()

    @property
    def memory(self) -> OwnMemory:
        assert self.client._memory is not None
        return self.client._memory

    async def classify(self, *pixels: int, seconds: float = 60) -> InferenceResult:
        """Ask about 100 images, whose first pixels are these, again and again."""
        rows = np.zeros((ROWS, 28, 28), np.uint8)
        rows[:, 0, 0] = np.resize(pixels, ROWS)
        return await infer(
            self.client, request_for("first-pixel", None, {"images": rows}, time.monotonic() + seconds)
        )


Start = Callable[..., Awaitable[Halves]]


@pytest.fixture
async def start(
    add_classifier: Callable[..., Path],
    add_generator: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Start]:
    """Starts both halves."""
    add_classifier()
    add_generator()
    started: list[Halves] = []

    async def start(**settings: Any) -> Halves:
        halves = Halves(tmp_path / "engine.sock", Settings(models_dir=tmp_path, **settings))
        started.append(halves)
        await halves.start(monkeypatch)
        return halves

    yield start
    for halves in started:
        await halves.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def labels(answer: InferenceResult) -> list[int]:
    return [int(label) for label in answer.outputs[0].argmax(axis=1)]


async def test_large_bodies_get_the_answers_that_they_get_through_the_socket(start: Start) -> None:
    halves = await start()
    through_socket = EngineClient(halves.path)
    await through_socket.connected()
    z = np.random.default_rng(1).normal(size=(3000, LATENT)).astype(np.float32)
    large: dict[str, Array] = {"z": z, "label": np.arange(3000) % 10}
    assert sum(array.nbytes for array in large.values()) > SHARED_BYTES
    for rows in (3000, 1):
        inputs = {name: array[:rows] for name, array in large.items()}
        answers = [
            await infer(each, request_for("ramp", None, inputs)) for each in (halves.client, through_socket)
        ]
        for here, there in zip(*(answer.outputs for answer in answers), strict=True):
            assert here.tobytes() == there.tobytes()
    assert halves.placed == [(0, sum(array.nbytes for array in large.values()))]
    await through_socket.close()


async def test_a_body_that_was_received_into_the_memory_is_not_copied(start: Start) -> None:
    halves = await start()
    assert halves.client.memory(SHARED_BYTES) is None
    received = halves.client.memory(BODY_BYTES)
    assert received is not None
    rows = np.ndarray((ROWS, 28, 28), np.uint8, received)
    rows[:] = 0
    rows[:, 0, 0] = np.arange(ROWS) % 10
    answer = await infer(halves.client, request_for("first-pixel", None, {"images": rows}))
    assert labels(answer) == [pixel % 10 for pixel in range(ROWS)]
    assert halves.placed == [(0, BODY_BYTES)]
    del received
    assert halves.memory.regions == 1  # it may be sent again
    del rows
    await until(lambda: not halves.memory.regions)
    taken = [halves.client.memory(BODY_BYTES) for _ in range(5)]
    assert [each is None for each in taken] == [False] * 4 + [True]


async def test_what_finds_no_room_crosses_through_the_socket(start: Start) -> None:
    halves = await start(max_batch_size=8)
    answers = await asyncio.gather(*(halves.classify(pixel, 9 - pixel) for pixel in range(10)))
    for pixel, answer in enumerate(answers):
        assert labels(answer) == [pixel, 9 - pixel] * (ROWS // 2)
    assert halves.placed.count(None) == 6
    await until(lambda: not halves.memory.regions)


async def test_small_requests_that_are_large_together_cross_in_memory(start: Start) -> None:
    halves = await start()
    images = np.zeros((60, 2, 28, 28), np.uint8)
    images[:, :, 0, 0] = np.arange(120).reshape(60, 2) % 10
    answers = await asyncio.gather(
        *(infer(halves.client, request_for("first-pixel", None, {"images": image})) for image in images)
    )
    assert [labels(answer) for answer in answers] == images[:, :, 0, 0].tolist()
    assert halves.placed == [(0, 120 * 784)]


@pytest.mark.slow
async def test_a_body_is_given_back_however_its_request_ends(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = await start(max_batch_delay_seconds=0.2, max_queue_rows=2 * ROWS, max_request_rows=2 * ROWS)
    gc.collect()
    gc.disable()  # reference counts alone must do
    try:
        assert labels(await halves.classify(1)) == [1] * ROWS
        for seconds in (-1.0, 0.05):  # late on arrival, and in the queue
            with pytest.raises(DeadlineExceeded):
                await halves.classify(1, seconds=seconds)
        calls = [asyncio.ensure_future(halves.classify(pixel)) for pixel in range(3)]
        with pytest.raises(QueueFull):
            await calls[2]
        calls[0].cancel()
        assert labels(await calls[1]) == [1] * ROWS
        with monkeypatch.context() as patched:
            patched.delattr(Engine, "begin")
            patched.setattr(batcher.logger, "disabled", True)  # pytest keeps records, and so tracebacks
            with pytest.raises(EngineError, match="the batch failed"):
                await halves.classify(1)
        assert halves.placed.count(None) == 0
        assert len(halves.placed) == 7
        await until(lambda: not halves.memory.regions)
    finally:
        gc.enable()


async def test_bodies_are_given_back_in_whatever_thread_they_end(start: Start) -> None:
    halves = await start(max_batch_size=4)
    server, loop = halves.server, asyncio.get_running_loop()
    (link,) = server._links
    for offset in (0, 20 * PAGE_BYTES):
        assert halves.memory.place([np.zeros(BODY_BYTES, np.uint8)]) == (offset, BODY_BYTES)
    bodies = [server._memories[link].body(offset, BODY_BYTES) for offset in (0, 20 * PAGE_BYTES)]
    await loop.run_in_executor(None, bodies.clear)
    await until(lambda: not halves.memory.regions)


@pytest.mark.slow
async def test_nothing_of_a_body_is_left_whatever_its_client_does(start: Start, tmp_path: Path) -> None:
    halves = await start(max_queue_rows=2 * ROWS, max_request_rows=2 * ROWS, max_batch_delay_seconds=0.1)
    body = np.zeros((ROWS, 28, 28), np.uint8)
    body[:, 0, 0] = np.arange(ROWS) % 10
    sent = request(body.tobytes(), accept=RAW_ANSWER["accept"])
    gc.collect()
    gc.disable()
    try:
        async with listening(
            halves.client, tmp_path, max_request_rows=2 * ROWS, max_body_bytes=1 << 20
        ) as listener:
            async with connected(listener.port) as connection:
                answer = await exchange(connection, sent[:2000], sent[2000:70_000], sent[70_000:])
                probabilities = np.frombuffer(answer.body, np.float32).reshape(ROWS, 10)
                assert probabilities.argmax(axis=1).tolist() == body[:, 0, 0].tolist()
                late = request(body.tobytes(), extra="inkserve-timeout: 0.05")
                assert (await exchange(connection, late[:2000], late[2000:])).status in (429, 504)
            async with connected(listener.port) as leaving, connected(listener.port) as stopping:
                leaving.writer.write(sent[:2000])
                stopping.writer.write(sent)
                await until(lambda: halves.memory.regions > 0)
            connections = [connected(listener.port) for _ in range(4)]
            async with contextlib.AsyncExitStack() as stack:
                answers = await asyncio.gather(
                    *[
                        exchange(await stack.enter_async_context(each), sent[:2000], sent[2000:])
                        for each in connections
                    ]
                )
            assert {answer.status for answer in answers} <= {200, 429}
            await until(lambda: not halves.memory.regions)
        assert listener.through_asgi == []
        assert halves.placed.count(None) == 0
    finally:
        gc.enable()


def infer_in_memory(offset: object, size: object) -> bytes:
    images = np.zeros((ROWS, 28, 28), np.uint8)
    group = RequestGroup("first-pixel", None, {"images": images}, [ROWS], [60.0])
    header = [offset, size, *messages.group_header([7], group)]
    return b"".join(frame_pieces(Kind.INFER_SHARED, header))


GOOD = b"".join(frame_pieces(Kind.MEMORY, [MEMORY_BYTES]))


@pytest.mark.parametrize(
    "sent",
    [
        b"".join(frame_pieces(Kind.MEMORY, [MEMORY_BYTES + 1])),
        b"".join(frame_pieces(Kind.MEMORY, [])),
        b"".join(frame_pieces(Kind.MEMORY, ["all"])),
        GOOD + infer_in_memory(MEMORY_BYTES - 1, BODY_BYTES),
        GOOD + infer_in_memory(-1, BODY_BYTES),
        GOOD + infer_in_memory(0, BODY_BYTES + 1),
        GOOD + infer_in_memory(2**63, BODY_BYTES),
        GOOD + infer_in_memory(0, 0),
        GOOD + infer_in_memory(0.5, BODY_BYTES),
        GOOD + infer_in_memory(None, None),
        GOOD + b"".join(frame_pieces(Kind.INFER_SHARED, [1])),
    ],
)
async def test_a_place_that_is_wrong_closes_its_senders_connection(start: Start, sent: bytes) -> None:
    halves = await start()
    own = OwnMemory(MEMORY_BYTES)
    await cut_off(halves, sent, own.fd)
    own.close_fd()
    assert labels(await halves.classify(3)) == [3] * ROWS


async def test_a_place_in_memory_that_was_not_sent_closes_the_connection(start: Start) -> None:
    halves = await start()
    await cut_off(halves, infer_in_memory(0, BODY_BYTES))
    assert labels(await halves.classify(3)) == [3] * ROWS


async def test_memory_that_could_be_cut_off_closes_the_connection(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    halves = await start()
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MEMORY_BYTES)
    await cut_off(halves, GOOD + infer_in_memory(0, BODY_BYTES), fd)
    os.close(fd)
    assert "memory has the seals 0x0, expected 0x7" in caplog.text
    assert labels(await halves.classify(3)) == [3] * ROWS


async def test_memory_of_a_connection_that_cannot_be_opened_is_not_kept(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    halves = await start()
    own = OwnMemory(MEMORY_BYTES)
    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", fail, raising=False)
    await cut_off(halves, GOOD, own.fd)
    monkeypatch.undo()
    own.close_fd()
    assert labels(await halves.classify(3)) == [3] * ROWS


async def cut_off(halves: Halves, sent: bytes, *fds: int) -> None:
    """Send the engine these first bytes; returns once it has closed the connection and kept nothing of it."""
    before = len(halves.server._memories)
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(halves.path))
    socket.send_fds(peer, [sent], fds)
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        while await loop.sock_recv(peer, 65536):
            pass
    peer.close()
    assert len(halves.server._memories) == before


async def ask_without_memory(halves: Halves) -> None:
    """A large request gets its answer, although nothing is shared."""
    client = EngineClient(halves.path, memory_bytes=MEMORY_BYTES)
    await client.connected()
    images = np.full((ROWS, 28, 28), 3, np.uint8)
    answer = await infer(client, request_for("first-pixel", None, {"images": images}))
    assert labels(answer) == [3] * ROWS
    assert client._memory is None
    await client.close()


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
async def test_without_shared_memory_large_bodies_cross_through_the_socket(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    halves = await start()
    caplog.set_level("INFO")

    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, call, forbidden)
    await ask_without_memory(halves)
    assert "memory cannot be shared: [Errno 1] Operation not permitted" in caplog.text


async def test_an_engine_that_maps_no_memory_gets_large_bodies_through_the_socket(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    halves = await start()
    caplog.set_level("INFO")

    def full(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("service.split.engine_server.PeerMemory", full)
    await ask_without_memory(halves)
    assert "large bodies come through the socket: [Errno 12]" in caplog.text
