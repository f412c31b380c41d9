"""The cost of forming batches, and of passing requests through a device that computes nothing."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import uvloop
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from service.batching.batcher import Batcher
from service.batching.device import Device
from service.batching.items import Item
from service.batching.queue import Batch, BatchQueue
from service.batching.request import InferenceRequest, Outcome

Outputs = tuple[NDArray[Any], ...]

MAX_BATCH_SIZE = 256
MAX_QUEUE_ROWS = 16384


class Instant:
    """A runner that answers with zeros."""

    depth = 1
    buckets = range(1, MAX_BATCH_SIZE + 1)

    def begin(self, parts: Sequence[tuple[NDArray[Any], ...]], rows: int) -> Callable[[], Outputs]:
        del parts
        return lambda: (np.zeros((rows, 10), np.float32),)

    def seconds_for(self, rows: int) -> float:
        del rows
        return 0.0


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_form_a_batch(benchmark: BenchmarkFixture, rows: int) -> None:
    """Push and take a full batch of requests with `rows` rows each."""
    images = np.zeros((rows, 28, 28), np.uint8)
    outcomes: list[Outcome] = []

    def push_and_take() -> Batch:
        queue = BatchQueue(MAX_BATCH_SIZE, MAX_QUEUE_ROWS)
        for _ in range(MAX_BATCH_SIZE // rows):
            queue.push(Item((images,), rows, 0.0, math.inf, outcomes.append))
        return queue.take()

    assert benchmark(push_and_take).rows == MAX_BATCH_SIZE


@pytest.mark.parametrize("requests", [1, 64, 256])
def test_submit_together(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, requests: int) -> None:
    """Send many one-row requests at once through the queue, the device thread and back."""
    image = np.zeros((1, 28, 28), np.uint8)
    request = InferenceRequest("any", None, {}, 1, math.inf)

    async def start() -> tuple[Device, Batcher]:
        device = Device("benchmark")
        return device, Batcher(device, Instant(), BatchQueue(MAX_BATCH_SIZE, MAX_QUEUE_ROWS))

    device, batcher = loop.run_until_complete(start())

    async def submit() -> list[Outcome]:
        outcomes: list[Outcome] = []
        all_told = asyncio.Event()

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) == requests:
                all_told.set()

        for _ in range(requests):
            batcher.submit(request, (image,), done)
        await all_told.wait()
        return outcomes

    outcomes = benchmark(lambda: loop.run_until_complete(submit()))
    assert [outcome.outputs[0].shape for outcome in outcomes] == [(1, 10)] * requests
    device.close()
