"""Copies that overlap with compute: the engine's code and a real session, on streams that are threads.

What a GPU would do is so made up; what is done in which order, on which memory, is not. CUDA's real runtime
is asked in tests/unit/onnx/test_cuda.py.
"""

import asyncio
import ctypes
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
from service.batching.queue import Answer, BatchQueue
from service.errors import EngineError
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx import buffers as bindings
from service.onnx import cuda, engine
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
    """An engine that overlaps copies, and its session; only CUDA itself is not CUDA."""
    folder = add_classifier()
    real = ort.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    session = SessionOnAStream(real, runtime)
    streams = Streams(runtime, 0)  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "open_session", lambda *_: session)
    monkeypatch.setattr(engine, "streams_of", lambda *_: streams)
    monkeypatch.setattr(bindings, "GPU_MEMORY", "cpu")
    monkeypatch.setattr(cuda, "runtime", lambda _: runtime)
    monkeypatch.setattr(cuda, "pin", lambda *_: lambda: None)
    made = Engine(folder / MODEL_FILE, read_manifest(folder), OPTIONS)
    yield made, session
    runtime.settle()  # no stream may touch the engine's memory once that is gone


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_two_batches_under_way_give_each_its_own_answers(
    overlapped: tuple[Engine, SessionOnAStream],
) -> None:
    engine, session = overlapped
    engine.warm_up()
    rng = np.random.default_rng(3)
    under_way: deque[tuple[list[int], Callable[[], tuple[np.ndarray, ...]]]] = deque()

    def check() -> None:
        labels, end = under_way.popleft()
        (probabilities,) = end()
        assert probabilities.argmax(axis=1).tolist() == labels

    for _ in range(60):
        labels = rng.integers(0, 10, rng.integers(1, 9)).tolist()
        under_way.append((labels, engine.begin([(images(*labels),)], len(labels))))
        if len(under_way) == engine.depth:
            check()
    while under_way:
        check()
    assert len(set(session.graph_ids)) == engine.depth * len(engine.buckets)
    assert "0" not in session.graph_ids


async def test_requests_of_all_sizes_get_their_own_rows_from_batches_that_overlap(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    device = Device("test")
    await device.call(engine.warm_up)
    runtime.done.clear()
    batcher = Batcher(device, engine, BatchQueue(8, 10_000))
    rng = np.random.default_rng(4)
    asked = [rng.integers(0, 10, rng.integers(1, 21)) for _ in range(40)]
    answers: list[asyncio.Future[Answer]] = []
    for labels in asked:
        answers.append(asyncio.get_running_loop().create_future())
        batcher.submit((images(*labels),), len(labels), 1e12, partial(resolve, answers[-1]))
    for labels, answer in zip(asked, await asyncio.gather(*answers), strict=True):
        assert answer.outputs[0].argmax(axis=1).tolist() == labels.tolist()
    under_way = accumulate({"copy in": 1, "compute": 0, "copy out": -1}[step] for step in runtime.done)
    assert max(under_way) == 2
    device.close()


def test_each_batch_size_has_run_twice_in_each_slot_when_it_is_warm(
    overlapped: tuple[Engine, SessionOnAStream],
) -> None:
    engine, session = overlapped
    engine.warm_up()
    assert sorted(session.graph_ids) == sorted([str(number) for number in range(1, 9)] * 2)
    assert all(0 < engine.seconds_for(rows) < 60 for rows in range(1, 9))


def test_a_batch_is_copied_while_the_one_before_it_is_computed(
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


def test_an_answer_is_copied_back_while_the_next_batch_is_computed(
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
def test_each_step_waits_for_the_one_before_it(
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


def test_a_run_that_fails_is_an_error_and_leaves_the_memory_to_the_next(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, session = overlapped
    for _ in range(3):
        session.error = RuntimeError("the graph is wrong")
        with pytest.raises(EngineError, match="the graph is wrong"):
            engine.begin([(images(5),)], 1)
        assert runtime.done[-1] == "copy in"  # it was waited for
        session.error = None
        assert engine.run([(images(6),)], 1)[0].argmax() == 6


def test_a_copy_back_that_fails_is_an_error_once_nothing_is_computed_any_more(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    for turn in range(1, 4):
        runtime.failing = "copy out"
        with pytest.raises(EngineError, match="cudaMemcpyAsync gave cudaErrorInvalidResourceHandle"):
            engine.begin([(images(5),)], 1)
        assert runtime.done.count("compute") == 2 * turn - 1
        runtime.failing = ""
        assert engine.run([(images(6),)], 1)[0].argmax() == 6


def test_what_fails_on_the_device_is_an_error_when_the_batch_ends(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    end = engine.begin([(images(5),)], 1)
    runtime.error = INVALID_HANDLE
    with pytest.raises(
        EngineError, match=r"cudaEventSynchronize gave cudaErrorInvalidResourceHandle \(400\)"
    ):
        end()
    assert runtime.done == ["copy in", "compute", "copy out"]  # which were waited for
    with pytest.raises(EngineError, match="cudaEventRecord gave"):
        engine.begin([(images(5),)], 1)
    runtime.error = 0
    assert engine.run([(images(6),)], 1)[0].argmax() == 6


def test_the_thread_that_begins_a_batch_does_so_on_the_device(
    overlapped: tuple[Engine, SessionOnAStream], runtime: RuntimeOfThreads
) -> None:
    engine, _ = overlapped
    before = len(runtime.devices)
    engine.run([(images(6),)], 1)
    assert runtime.devices[before:] == [0]
    Streams(runtime, 3)  # type: ignore[arg-type]
    assert runtime.devices[-1] == 3


def test_without_overlap_and_on_other_providers_one_batch_at_a_time() -> None:
    assert replace(OPTIONS, overlap_copies=True).overlaps
    assert not replace(OPTIONS, overlap_copies=False).overlaps
    assert not replace(OPTIONS, pinned_memory=False).overlaps
    assert not replace(OPTIONS, provider="tensorrt").overlaps
    assert not replace(OPTIONS, provider="cpu").overlaps
