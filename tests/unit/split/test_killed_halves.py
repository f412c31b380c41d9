"""Either half of the split form is killed at every step of a large body's way: real processes, a real model.

The other half, which is in this process, serves on, and gives back what it shared with the dead one.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from service.batching.request import InferenceResult
from service.errors import ModelNotReady
from service.models.tensors import Array
from service.observability.metrics import Metrics
from service.onnx.engine import Engine
from service.serving.local import LocalPredictor
from service.serving.predictor import infer
from service.settings import Settings
from service.split.engine_client import EngineClient
from service.split.engine_server import EngineServer
from tests.support.halves import ENGINE_STEPS, MEMORY_BYTES, ROWS, WORKER_STEPS, armed_file, images, shared
from tests.support.requests import request_for

ROOT = Path(__file__).parents[3]

Fork = Callable[[str, str], int]


@pytest.fixture
def models_dir(add_classifier: Callable[..., Path]) -> Path:
    return add_classifier().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
def fork(path: Path, models_dir: Path) -> Iterator[Fork]:
    """Starts a half, and returns its process id."""
    command = [sys.executable, "-m", "tests.support.halves", str(path), str(models_dir)]
    started: list[int] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ends = process.stdin, process.stdout

        def fork(half: str, step: str) -> int:
            print(half, step, file=ends[0], flush=True)
            started.append(int(ends[1].readline()))
            return started[-1]

        yield fork
        process.stdin.close()
        for pid in filter(alive, started):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs. Its id may be another's by then, but hardly within a test."""
    return Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def classify(client: EngineClient, first_pixel: int) -> list[int]:
    answer = await infer(client, request_for("first-pixel", None, images(first_pixel)))
    return labels(answer)


def labels(answer: InferenceResult) -> list[int]:
    return [int(label) for label in answer.outputs[0].argmax(axis=1)]


def memory_is_free(client: EngineClient) -> bool:
    return client._memory is not None and not client._memory.regions


class EngineHalf:
    """The engine's half in this process, and a worker's half next to it, which lives on."""

    def __init__(self, path: Path, models_dir: Path) -> None:
        settings = Settings(models_dir=models_dir, max_batch_size=16)
        self.predictor = LocalPredictor(settings, Metrics())
        self.server = EngineServer(self.predictor, settings.max_request_rows, list)
        self.client = EngineClient(path, memory_bytes=MEMORY_BYTES)
        self._path = path

    async def start(self) -> None:
        await self.predictor.start()
        await self.server.start(self._path)
        await until(lambda: memory_is_free(self.client))

    async def close(self) -> None:
        await self.client.close()
        await self.predictor.close()
        await self.server.close()


@pytest.fixture
async def engine(path: Path, models_dir: Path) -> AsyncIterator[EngineHalf]:
    half = EngineHalf(path, models_dir)
    await half.start()
    yield half
    await half.close()


@pytest.mark.slow
async def test_a_worker_that_dies_at_any_step_leaves_nothing(engine: EngineHalf, fork: Fork) -> None:
    assert await classify(engine.client, 3) == [3] * ROWS
    before = shared()
    for step in WORKER_STEPS:
        victim = fork("worker", step)
        await until(lambda victim=victim: not alive(victim))  # type: ignore[misc]
        await until(lambda: shared() == before)
        assert await classify(engine.client, 4) == [4] * ROWS
        await until(lambda: memory_is_free(engine.client))


@pytest.mark.slow
async def test_the_rows_of_a_dead_worker_stay_until_the_batch_has_copied_them(
    path: Path, models_dir: Path, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.serving.local.ON_LOOP_SECONDS", 0.0)  # on the device's thread
    engine = EngineHalf(path, models_dir)
    await engine.start()
    before = shared()
    begun, go_on = threading.Event(), threading.Event()
    sums: list[int] = []
    begin = Engine.begin

    def wait(self: Engine, parts: Sequence[tuple[Array, ...]], rows: int) -> object:
        begun.set()
        assert go_on.wait(60)
        sums.append(int(sum(arrays[0].sum() for arrays in parts)))
        return begin(self, parts, rows)

    monkeypatch.setattr(Engine, "begin", wait)
    victim = fork("worker", "never")
    await until(begun.is_set)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(engine.server._links) == 1)
    assert shared() == (before[0] + 1, before[1] + 1)
    go_on.set()
    await until(lambda: shared() == before)
    assert sums[0] == 16  # the rows of the first batch, of which each has a one
    assert await classify(engine.client, 4) == [4] * ROWS
    await engine.close()


@pytest.mark.slow
async def test_an_engine_that_dies_at_any_step_leaves_nothing(path: Path, fork: Fork) -> None:
    client = EngineClient(path, memory_bytes=MEMORY_BYTES)
    before: tuple[int, int] | None = None
    for step in ENGINE_STEPS:
        early = step == "the memory is mapped"
        if early:
            armed_file(path).touch()
        engine = fork("engine", step)
        if not early:
            await until(lambda: memory_is_free(client))
            assert await classify(client, 5) == [5] * ROWS
            await until(lambda: memory_is_free(client))
            before = before or shared()
            assert shared() == before
            armed_file(path).touch()
            with contextlib.suppress(ModelNotReady):
                assert await classify(client, 6) == [6] * ROWS
        await until(lambda engine=engine: not alive(engine))  # type: ignore[misc]
        armed_file(path).unlink()
        await until(lambda: not client.ready())
    fork("engine", "the request has come")
    await until(lambda: memory_is_free(client))
    assert await classify(client, 7) == [7] * ROWS
    assert shared() == before
    await client.close()
