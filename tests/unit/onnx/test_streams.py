"""Copies that overlap with compute: the engine's own code and a real session, with threads as streams.

The GPU is fake; the order of the work and the memory that it uses are not. tests/unit/onnx/test_cuda.py calls
CUDA's real runtime.
"""

import asyncio
import ctypes
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.batching.batcher import Batcher
from service.batching.device import Device
from service.batching.queue import BatchQueue
from service.batching.request import InferenceRequest, InferenceResult
from service.errors import EngineError
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx import buffers, cuda, engine
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from service.onnx.streams import Streams
from service.serving.predictor import resolve
from tests.support.models import images
from tests.support.streams_of_threads import (
    INVALID_HANDLE,
    LONGEST_SECONDS,
    RuntimeOfThreads,
    SessionOnAStream,
    held,
)

OPTIONS = EngineOptions("cuda", 0, 1, (1, 2, 4, 8))
WAIT_SECONDS = 10


@pytest.fixture
def runtime() -> RuntimeOfThreads:
    return RuntimeOfThreads()


@pytest.fixture
def overlapped(
    runtime: RuntimeOfThreads, add_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engine, SessionOnAStream]]:
    """An engine that overlaps copies, and its session; only CUDA itself is replaced."""
    folder = add_classifier()
    real = ort.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    session = SessionOnAStream(real, runtime)
    streams = Streams(runtime, 0)  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "open_as_far_as_possible", lambda _, options: (session, options))
    monkeypatch.setattr(engine, "streams_of", lambda *_: streams)
    monkeypatch.setattr(buffers, "GPU_MEMORY", "cpu")
    monkeypatch.setattr(cuda, "runtime", lambda _: runtime)
    monkeypatch.setattr(cuda, "pin", lambda *_: lambda: None)
    made = Engine(folder / MODEL_FILE, read_manifest(folder), OPTIONS)
    yield made, session
    runtime.settle()  # no stream may use the engine's memory after this


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


@pytest.mark.slow
def test_two_batches_in_flight_return_their_own_outputs(
    overlapped: tuple[Engine, SessionOnAStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "service.onnx.engine.SLOWER", math.inf
    )  # no size is timed again, however busy the machine
    engine, session = overlapped
    engine.warm_up()
    rng = np.random.default_rng(3)
    in_flight: deque[tuple[list[int], Callable[[], tuple[np.ndarray, ...]]]] = deque()

    def check() -> None:
        labels, end = in_flight.popleft()
        (probabilities,) = end()
        assert probabilities.argmax(axis=1).tolist() == labels

    for _ in range(60):
        labels = rng.integers(0, 10, rng.integers(1, 9)).tolist()
        in_flight.append((labels, engine.begin([(images(*labels),)], len(labels))))
        if len(in_flight) == engine.depth:
            check()
    while in_flight:
        check()
    assert len(set(session.graph_ids)) == engine.depth * len(engine.buckets)
    assert "0" not in session.graph_ids


@pytest.mark.slow
async def test_overlapping_batches_return_each_request_its_own_rows(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    device = Device("test")
    await device.call(engine.warm_up)
    runtime.done.clear()
    batcher = Batcher(device, engine, BatchQueue(8, 10_000))
    rng = np.random.default_rng(4)
    asked = [rng.integers(0, 10, rng.integers(1, 21)) for _ in range(40)]
    answers: list[asyncio.Future[InferenceResult]] = []
    for labels in asked:
        answers.append(asyncio.get_running_loop().create_future())
        request = InferenceRequest("any", None, {}, len(labels), 1e12)
        batcher.submit(request, (images(*labels),), partial(resolve, answers[-1]))
    for labels, answer in zip(asked, await asyncio.gather(*answers), strict=True):
        assert answer.outputs[0].argmax(axis=1).tolist() == labels.tolist()
    in_flight = accumulate({"copy in": 1, "compute": 0, "copy out": -1}[step] for step in runtime.done)
    assert max(in_flight) == 2
    device.close()


@pytest.mark.slow
def test_warm_up_runs_each_batch_size_twice_in_each_slot(
    overlapped: tuple[Engine, SessionOnAStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "service.onnx.engine.SLOWER", math.inf
    )  # no size is timed again, however busy the machine
    engine, session = overlapped
    engine.warm_up()
    assert sorted(session.graph_ids) == sorted([str(number) for number in range(1, 9)] * 2)
    assert all(0 < engine.seconds_for(rows) < 60 for rows in range(1, 9))


def test_a_batch_is_copied_in_while_the_previous_one_is_computed(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    with held(runtime.streams[1]):
        first = engine.begin([(images(3, 1),)], 2)
        second = engine.begin([(images(4),)], 1)
        until(lambda: runtime.done.count("copy in") == 2)
        assert "compute" not in runtime.done
    assert first()[0].argmax(axis=1).tolist() == [3, 1]
    assert second()[0].argmax(axis=1).tolist() == [4]


def test_outputs_are_copied_back_while_the_next_batch_is_computed(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    with held(runtime.streams[2]):
        first = engine.begin([(images(3),)], 1)
        until(lambda: runtime.done.count("compute") == 1)
        runtime.cudaStreamSynchronize(ctypes.c_void_p(2))
        runtime.streams[1].hold.clear()
        second = engine.begin([(images(4),)], 1)
    assert first()[0].argmax() == 3
    assert runtime.done.count("compute") == 1
    runtime.streams[1].hold.set()
    assert second()[0].argmax() == 4


@pytest.mark.parametrize(("stream", "later"), [(0, "compute"), (1, "copy out")])
def test_each_step_waits_for_the_previous_one(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads, stream: int, later: str
) -> None:
    engine, _ = overlapped
    with held(runtime.streams[stream]):
        end = engine.begin([(images(7),)], 1)
        time.sleep(10 * LONGEST_SECONDS)
        assert later not in runtime.done
    assert end()[0].argmax() == 7
    assert runtime.done == ["copy in", "compute", "copy out"]


def test_only_the_rows_of_a_batch_are_copied(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = overlapped
    sizes: list[int] = []
    copy = runtime.cudaMemcpyAsync

    def noted(
        to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int, stream: object
    ) -> int:
        sizes.append(size.value)
        return copy(to, source, size, kind, stream)

    monkeypatch.setattr(runtime, "cudaMemcpyAsync", noted)
    engine.run([(images(1, 2, 3),)], 3)
    assert sizes == [3 * 784, 3 * 10 * 4]


def test_a_failed_run_raises_an_error_and_frees_its_memory_for_the_next(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, session = overlapped
    for _ in range(3):
        session.error = RuntimeError("the graph is wrong")
        with pytest.raises(EngineError, match="the graph is wrong"):
            engine.begin([(images(5),)], 1)
        assert runtime.done[-1] == "copy in"  # `begin` waited for it
        session.error = None
        assert engine.run([(images(6),)], 1)[0].argmax() == 6


def test_a_failed_copy_back_raises_an_error_after_compute_is_done(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    for run in range(1, 4):
        runtime.failing = "copy out"
        with pytest.raises(EngineError, match="cudaMemcpyAsync returned cudaErrorInvalidResourceHandle"):
            engine.begin([(images(5),)], 1)
        assert runtime.done.count("compute") == 2 * run - 1
        runtime.failing = ""
        assert engine.run([(images(6),)], 1)[0].argmax() == 6


def test_a_device_error_is_raised_at_the_end_of_the_batch(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    end = engine.begin([(images(5),)], 1)
    runtime.error = INVALID_HANDLE
    with pytest.raises(
        EngineError, match=r"cudaEventSynchronize returned cudaErrorInvalidResourceHandle \(400\)"
    ):
        end()
    assert runtime.done == ["copy in", "compute", "copy out"]  # `end` waited for them
    with pytest.raises(EngineError, match="cudaEventRecord returned"):
        engine.begin([(images(5),)], 1)
    runtime.error = 0
    assert engine.run([(images(6),)], 1)[0].argmax() == 6


def test_a_batch_selects_its_device_in_the_calling_thread(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    before = len(runtime.devices)
    engine.run([(images(6),)], 1)
    assert runtime.devices[before:] == [0]
    Streams(runtime, 3)  # type: ignore[arg-type]
    assert runtime.devices[-1] == 3


def test_only_cuda_with_pinned_memory_overlaps() -> None:
    assert replace(OPTIONS, overlap_copies=True).overlaps
    assert not replace(OPTIONS, overlap_copies=False).overlaps
    assert not replace(OPTIONS, pinned_memory=False).overlaps
    assert not replace(OPTIONS, provider="tensorrt").overlaps
    assert not replace(OPTIONS, provider="cpu").overlaps
