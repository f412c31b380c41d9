"""The device's thread and the batchers' futures, with runners that the test holds and releases."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from service.batching.batcher import Batcher
from service.batching.device import Device
from service.batching.low_share import LOW_SHARE
from service.batching.queue import BatchQueue, BatchRecord
from service.batching.request import Array, InferenceRequest, InferenceResult, Outcome, Priority
from service.errors import DeadlineExceeded, EngineError, QueueFull, ShuttingDown
from service.serving.predictor import resolve

FAR = 1e12
NOTHING = 1e-9
"""Seconds that every row really takes longer than, so that batches correct no expected time."""


class Doubler:
    """Doubles its rows; waits for `go` first, and notes the rows of every batch that begins or ends."""

    buckets = range(1, 257)

    def __init__(self, *, held: bool = False, lasting: float = 0.0, depth: int = 1) -> None:
        self.lasting = lasting
        self.depth = depth
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0 if held else 1_000_000)
        self.begun: list[int] = []
        self.batches: list[list[float]] = []
        self.error: Exception | None = None
        self.seconds_a_row = 1.0
        self.threads: list[str] = []

    def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
        self.begun.append(rows)
        self.started.release()
        return partial(self.end, parts, rows)

    def end(self, parts: Sequence[tuple[Array, ...]], rows: int) -> tuple[Array, ...]:
        if not self.go.acquire(timeout=10):
            self.go.release(1_000_000)  # the test has failed: it should not wait for every batch in turn
            raise AssertionError("nobody let the batch go")
        if self.error is not None:
            raise self.error
        time.sleep(self.lasting)
        self.threads.append(threading.current_thread().name)
        batch = np.concatenate([arrays[0] for arrays in parts])
        assert len(batch) == rows
        self.batches.append(batch[:, 0].tolist())
        return (batch * 2,)

    def seconds_for(self, rows: int) -> float:
        return self.seconds_a_row * rows

    async def running(self) -> None:
        """Wait until a batch is on the device."""
        assert await asyncio.to_thread(self.started.acquire, timeout=30)


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    device = Device("test")
    yield device
    device.close()


def rows(*values: float) -> tuple[Array, ...]:
    return (np.array([[value] for value in values]),)


def request(count: int, deadline: float = FAR, priority: Priority = "normal") -> InferenceRequest:
    return InferenceRequest("any", None, {}, count, deadline, priority)


def submit(
    batcher: Batcher, *values: float, deadline: float = FAR, priority: Priority = "normal"
) -> "asyncio.Task[list[float]]":
    async def run() -> list[float]:
        answered: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
        sent = request(len(values), deadline, priority)
        item = batcher.submit(sent, rows(*values), partial(resolve, answered))
        try:
            answer = await answered
        except asyncio.CancelledError:
            batcher.cancel(item)
            raise
        return [float(value) for value in answer.outputs[0][:, 0]]

    return asyncio.ensure_future(run())


async def settle() -> None:
    """Let everything that is due on the event loop happen."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_every_caller_gets_its_own_rows(device: Device) -> None:
    batcher = Batcher(device, Doubler(), BatchQueue(8, 10_000))
    tasks = [submit(batcher, *range(start, start + 1 + start % 11)) for start in range(100)]
    for start, task in enumerate(tasks):
        assert await task == [2.0 * value for value in range(start, start + 1 + start % 11)]


async def test_requests_that_arrive_together_run_together(device: Device) -> None:
    runner = Doubler()
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    await asyncio.gather(*(submit(batcher, value) for value in range(5)))
    assert runner.batches == [[0, 1, 2, 3, 4]]


async def test_a_queue_fills_while_the_device_is_busy(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    tasks = [submit(batcher, 0.0)]
    await runner.running()
    tasks += [submit(batcher, value) for value in (1.0, 2.0, 3.0)]
    await settle()
    assert batcher.rows_waiting == batcher.requests_waiting == 3
    assert batcher.requests_running == 1
    runner.go.release(10)
    await asyncio.gather(*tasks)
    assert batcher.requests_running == 0
    assert runner.batches == [[0], [1, 2, 3]]


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("on_loop", [False, True])
async def test_rows_of_low_priority_take_their_turns_beside_small_requests(
    elsewhere: bool, depth: int, on_loop: bool
) -> None:
    device = Device("test", 1.0 if on_loop else 0.0)
    runner = Doubler(depth=depth)
    runner.seconds_a_row = 0.002
    batcher = Batcher(device, runner, BatchQueue(8, 100, low_share=device.low_share))
    other = Batcher(device, Doubler(depth=depth), BatchQueue(8, 100, low_share=device.low_share))
    small = other if elsewhere else batcher
    low = [submit(batcher, *range(each, each + 5), priority="low") for each in (0, 5)]
    values = iter(range(1_000))
    async with asyncio.timeout(30):
        while not all(task.done() for task in low):
            value = next(values)
            sent = [submit(small, float(value)), submit(small, -1.0)]
            await asyncio.sleep(0)
            sent[1].cancel()  # perhaps the last of those that did not wait for their turn
            assert await sent[0] == [2.0 * value]
            await asyncio.sleep(0.001)
    assert [task.result() for task in low] == [
        [2.0 * value for value in range(start, start + 5)] for start in (0, 5)
    ]
    await batcher.close()
    await other.close()
    device.close()


async def test_rows_that_wait_for_their_turn_need_no_company(device: Device) -> None:
    runner = Doubler()
    runner.seconds_a_row = 0.01
    batcher = Batcher(device, runner, BatchQueue(8, 100, low_share=device.low_share))
    await submit(batcher, 1.0)
    await submit(batcher, 2.0, priority="low")  # the next one's turn is later
    # The device takes a batch in the next iteration of the event loop.
    small = batcher.submit(request(1), rows(3.0), lambda _: None)
    low: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
    batcher.submit(request(1, priority="low"), rows(4.0), partial(resolve, low))
    batcher.cancel(small)
    async with asyncio.timeout(5):
        assert (await low).outputs[0].tolist() == [[8.0]]
    assert runner.batches == [[1.0], [2.0], [4.0]]


async def test_the_device_is_busy_while_a_batch_runs(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    began = time.monotonic()
    for _ in range(2):
        task = submit(batcher, 1.0)
        await runner.running()
        await asyncio.sleep(0.03)
        runner.go.release()
        await task
    assert 0.06 <= device.busy_seconds <= time.monotonic() - began
    busy = device.busy_seconds
    await asyncio.sleep(0.03)
    assert device.busy_seconds == busy


async def test_a_request_waits_until_its_last_rows_run(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(2, 100))
    task = submit(batcher, *range(5))
    for waiting in ((3, 1), (1, 1), (0, 0)):
        await runner.running()
        assert (batcher.rows_waiting, batcher.requests_waiting) == waiting
        runner.go.release()
    assert await task == [0, 2, 4, 6, 8]


async def test_models_on_one_device_take_turns(device: Device) -> None:
    order: list[str] = []

    class Named(Doubler):
        def __init__(self, name: str, *, held: bool = False) -> None:
            super().__init__(held=held)
            self.name = name

        def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
            order.append(self.name)
            return super().begin(parts, rows)

    first, second = Named("first", held=True), Named("second")
    busy = Batcher(device, first, BatchQueue(1, 100))
    other = Batcher(device, second, BatchQueue(1, 100))
    tasks = [submit(busy, value) for value in (1, 2, 3)]
    await first.running()
    tasks += [submit(other, 1), submit(other, 2)]
    await settle()
    first.go.release(10)
    await asyncio.gather(*tasks)
    assert order == ["first", "first", "second", "first", "second"]


async def test_only_a_full_batch_begins_while_another_runs(device: Device) -> None:
    runner = Doubler(held=True, depth=2)
    batcher = Batcher(device, runner, BatchQueue(2, 100))
    tasks = [submit(batcher, *range(5))]
    for _ in range(2):
        await runner.running()
    tasks.append(submit(batcher, 5))  # makes the last batch whole
    await settle()
    runner.go.release()
    await runner.running()
    assert runner.begun == [2, 2, 2]
    tasks.append(submit(batcher, 6))
    runner.go.release()
    await asyncio.sleep(0.05)  # time enough to begin it, were that not wrong
    assert (runner.begun, batcher.rows_waiting) == ([2, 2, 2], 1)
    runner.go.release(2)
    assert await asyncio.gather(*tasks) == [[0, 2, 4, 6, 8], [10], [12]]
    assert runner.begun == [2, 2, 2, 1]


async def test_models_take_turns_with_whole_batches_too(device: Device) -> None:
    first, second = Doubler(held=True, depth=2), Doubler(depth=2)
    busy = Batcher(device, first, BatchQueue(1, 100))
    other = Batcher(device, second, BatchQueue(1, 100))
    tasks = [submit(busy, 1), submit(busy, 2)]
    for _ in range(2):
        await first.running()
    tasks += [submit(busy, 3), submit(other, 1), submit(busy, 4)]
    await settle()
    first.go.release(2)
    await second.running()
    assert first.begun == [1, 1, 1]
    first.go.release(2)
    assert await asyncio.gather(*tasks) == [[2], [4], [6], [2], [8]]


async def test_a_batch_is_not_charged_for_the_time_of_the_one_before_it(device: Device) -> None:
    runner = Doubler(lasting=0.05, depth=2)
    records: list[BatchRecord] = []
    batcher = Batcher(device, runner, BatchQueue(1, 100), records.append)
    began = time.monotonic()
    tasks = [submit(batcher, value) for value in range(4)]
    await settle()
    submitted = time.monotonic()
    await asyncio.gather(*tasks)
    assert runner.begun == [1, 1, 1, 1]
    assert sum(record.compute_seconds for record in records) <= time.monotonic() - began
    for record, following in pairwise(records):
        assert following.started >= record.started + record.compute_seconds
        (waited,) = following.queue_seconds
        assert waited >= following.started - submitted


async def test_a_batch_that_fails_leaves_the_one_beside_it_alone(device: Device) -> None:
    class Failing(Doubler):
        def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
            end = super().begin(parts, rows)
            if 13.0 in parts[0][0]:
                raise RuntimeError("no such number")
            return end

        def end(self, parts: Sequence[tuple[Array, ...]], rows: int) -> tuple[Array, ...]:
            if 14.0 in parts[0][0]:
                raise RuntimeError("nor this one")
            return super().end(parts, rows)

    batcher = Batcher(device, Failing(depth=2), BatchQueue(1, 100))
    outcomes = await asyncio.gather(
        *(submit(batcher, value) for value in (1, 13, 2, 14, 3)), return_exceptions=True
    )
    assert outcomes[0::2] == [[2], [4], [6]]
    assert [str(outcome) for outcome in outcomes[1::2]] == [
        "the batch failed: no such number",
        "the batch failed: nor this one",
    ]


class Model:
    depth = 1
    buckets = range(1, 3)

    def fail(self) -> None:
        raise EngineError("no room on the device")

    def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
        del parts, rows
        raise EngineError("no such kernel")

    def seconds_for(self, rows: int) -> float:
        return float(rows)


@pytest.mark.slow
@pytest.mark.parametrize("on_loop_seconds", [0.0, 999.0])
async def test_what_failed_is_freed_at_once(on_loop_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when garbage is looked for, which may be while a CUDA graph is captured."""
    device = Device("test", on_loop_seconds)
    monkeypatch.setattr(
        logging.getLogger("service.batching.batcher"), "disabled", True
    )  # pytest keeps what is logged
    gc.collect()
    gc.disable()
    try:
        warming, running = Model(), Model()
        with pytest.raises(EngineError, match="no room") as caught:
            await device.call(warming.fail)
        del caught
        batcher = Batcher(device, running, BatchQueue(2, 100, max_batch_delay_seconds=5))
        outcomes: list[Outcome] = []
        sent = [rows(value) for value in (1, 2)]
        for inputs in sent:  # the first sets both timers, the second fills the batch
            batcher.submit(request(1), inputs, outcomes.append)
        await batcher.close()
        assert "no such kernel" in str(outcomes)
        await device.call(lambda: None)  # the thread has let go of the batch
        gone = [weakref.ref(each) for each in (warming, running, *(array for (array,) in sent))]
        del warming, running, batcher, sent, inputs
        await settle()
        assert [ref() for ref in gone] == [None] * 4
    finally:
        gc.enable()
        device.close()


@pytest.mark.parametrize("on_loop_seconds", [0.0, 9.0])
async def test_a_batch_that_cannot_be_recorded_holds_up_nothing(
    on_loop_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: BatchRecord) -> None:
        raise RuntimeError("no room for metrics")

    device = Device("test", on_loop_seconds)
    batcher = Batcher(device, Doubler(), BatchQueue(2, 100, max_batch_delay_seconds=0.01), fail)
    for first in range(3):
        async with asyncio.timeout(5):
            assert await submit(batcher, first, 8, 9) == [2 * first, 16, 18]
    assert caplog.text.count("a batch could not be recorded") == 6
    device.close()


async def test_an_outcome_that_nobody_takes_costs_the_others_nothing(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Outcome) -> None:
        raise RuntimeError("a client's connection broke")

    batcher = Batcher(device, Doubler(), BatchQueue(3, 100, max_batch_delay_seconds=60))
    before = submit(batcher, 1)
    await settle()
    batcher.submit(request(1), rows(2), fail)
    after = submit(batcher, 3)
    async with asyncio.timeout(30):
        assert [await before, await after] == [[2.0], [6.0]]
        await batcher.close()  # the failed one counts as answered
    assert caplog.text.count("a request's outcome could not be delivered") == 1


async def test_other_work_waits_for_all_that_has_begun(device: Device) -> None:
    runner = Doubler(held=True, depth=2)
    batcher = Batcher(device, runner, BatchQueue(1, 100))
    tasks = [submit(batcher, value) for value in (1, 2)]
    for _ in range(2):
        await runner.running()
    ended: list[int] = []
    call = asyncio.ensure_future(device.call(lambda: ended.append(len(runner.batches))))
    await settle()
    runner.go.release(2)
    await asyncio.gather(call, *tasks)
    assert ended == [2]


async def test_other_work_takes_its_turn_between_two_batches(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(1, 100))
    order: list[tuple[str, int]] = []
    tasks = [submit(batcher, value) for value in (1, 2, 3)]
    await runner.running()  # and the second batch has its turn already
    call = asyncio.ensure_future(
        device.call(lambda: order.append((threading.current_thread().name, len(runner.batches))))
    )
    await settle()
    assert not call.done()
    runner.go.release(10)
    await asyncio.gather(call, *tasks)
    assert order == [("device-test", 2)]


async def test_the_thread_does_other_work_while_batches_run_on_the_loop() -> None:
    device = Device("test", on_loop_seconds=2.0)
    runner = Doubler()
    batcher = Batcher(device, runner, BatchQueue(4, 100))
    work = device.call(lambda: runner.threads.append(threading.current_thread().name))
    await asyncio.gather(submit(batcher, 1), work)
    assert runner.threads == ["MainThread", "device-test"]
    device.close()


async def test_cancelled_work_is_skipped(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(1, 100))
    task = submit(batcher, 1)
    await runner.running()
    done: list[str] = []
    call = asyncio.ensure_future(device.call(lambda: done.append("cancelled")))
    await settle()
    call.cancel()
    await settle()
    runner.go.release(10)
    await task
    await device.call(lambda: done.append("awaited"))
    assert done == ["awaited"]


async def test_failed_other_work_raises_and_leaves_the_device_running(device: Device) -> None:
    def fail() -> None:
        raise EngineError("no graph")

    with pytest.raises(EngineError, match="no graph"):
        await device.call(fail)
    assert await submit(Batcher(device, Doubler(), BatchQueue(8, 100)), 3) == [6.0]


async def test_cancelled_request_leaves_the_queue_at_once(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    running = submit(batcher, 0.0)
    await runner.running()
    leaving, staying = submit(batcher, 1.0), submit(batcher, 2.0)
    await settle()
    leaving.cancel()
    await settle()
    assert batcher.rows_waiting == batcher.requests_waiting == 1
    runner.go.release(10)
    assert await asyncio.gather(running, staying) == [[0], [4]]
    assert runner.batches == [[0], [2]]


async def test_cancelling_a_running_request_harms_no_batch_mate(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    leaving, staying = submit(batcher, 1.0), submit(batcher, 2.0)
    await runner.running()
    assert batcher.requests_running == 2
    leaving.cancel()
    await settle()
    assert batcher.requests_running == 1
    runner.go.release(10)
    assert await staying == [4]
    assert batcher.requests_running == 0


async def test_deadline_passes_without_waiting_for_the_running_batch(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    running = submit(batcher, 0.0)
    await runner.running()
    late = submit(batcher, 1.0, deadline=time.monotonic() + 0.01)
    with pytest.raises(DeadlineExceeded, match=r"1 rows were queued for 0\.\d+ s, their deadline has passed"):
        await late
    assert batcher.rows_waiting == batcher.requests_waiting == 0
    runner.go.release(10)
    assert await running == [0]


async def test_a_sooner_deadline_is_not_hidden_by_a_later_one(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(8, 100))
    running = submit(batcher, 0.0)
    await runner.running()
    later = submit(batcher, 1.0)
    await settle()
    sooner = submit(batcher, 2.0, deadline=time.monotonic() + 0.01)
    with pytest.raises(DeadlineExceeded):
        await sooner
    runner.go.release(10)
    assert await asyncio.gather(running, later) == [[0], [2]]


async def test_a_full_queue_refuses_at_once(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(1, 2))
    tasks = [submit(batcher, 0.0)]
    await runner.running()
    tasks += [submit(batcher, 1.0), submit(batcher, 2.0)]
    await settle()
    with pytest.raises(QueueFull):
        await submit(batcher, 3.0)
    runner.go.release(10)
    assert await asyncio.gather(*tasks) == [[0], [2], [4]]


async def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(max_batch_size=1, max_queue_rows=1000))
    first = submit(batcher, 0.0)
    await runner.running()
    await asyncio.sleep(0.05)
    runner.go.release()
    await first  # so that a row is known to take some milliseconds
    tasks = [submit(batcher, float(value)) for value in range(100)]
    await runner.running()
    with pytest.raises(QueueFull, match=r"would take \d+\.\d+ s, expected at most 0\.0"):
        await submit(batcher, 1.0, deadline=time.monotonic() + 0.05)
    in_time = submit(batcher, 2.0, deadline=time.monotonic() + 60)
    for _ in range(101):
        runner.go.release()
    await asyncio.gather(*tasks, in_time)


async def test_a_failed_batch_answers_each_of_its_requests_and_no_other(device: Device) -> None:
    runner = Doubler(held=True)
    records: list[BatchRecord] = []
    batcher = Batcher(device, runner, BatchQueue(2, 100), records.append)
    runner.error = RuntimeError("out of memory")
    tasks = [submit(batcher, 0.0), submit(batcher, 1.0)]
    await runner.running()
    next_batch = submit(batcher, 2.0)
    runner.go.release()
    for task in tasks:
        with pytest.raises(EngineError, match="the batch failed: out of memory"):
            await task
    await runner.running()
    runner.error = None
    runner.go.release()
    assert await next_batch == [4]
    await settle()
    assert [record.failed for record in records] == [True, False]


async def test_a_split_request_whose_first_batch_fails_leaves_the_queue(device: Device) -> None:
    runner = Doubler()
    runner.error = RuntimeError("no")
    batcher = Batcher(device, runner, BatchQueue(2, 100))
    with pytest.raises(EngineError):
        await submit(batcher, 1, 2, 3, 4, 5, 6, 7)
    assert batcher.rows_waiting == batcher.requests_waiting == 0


async def test_closing_answers_what_was_accepted_and_refuses_the_rest(device: Device) -> None:
    runner = Doubler(held=True)
    batcher = Batcher(device, runner, BatchQueue(1, 100))
    tasks = [submit(batcher, 1.0), submit(batcher, 2.0)]
    await runner.running()
    closing = asyncio.ensure_future(batcher.close())
    await settle()
    with pytest.raises(ShuttingDown):
        await submit(batcher, 3.0)
    assert not closing.done()
    runner.go.release(10)
    assert await asyncio.gather(*tasks) == [[2], [4]]
    await closing


async def test_a_delay_gathers_rows_on_an_idle_device(device: Device) -> None:
    runner = Doubler()
    batcher = Batcher(device, runner, BatchQueue(3, 100, max_batch_delay_seconds=60))
    tasks = [submit(batcher, 1.0), submit(batcher, 2.0)]
    await settle()
    assert batcher.rows_waiting == 2
    tasks.append(submit(batcher, 3.0))
    assert await asyncio.gather(*tasks) == [[2], [4], [6]]
    assert runner.batches == [[1, 2, 3]]


async def test_a_delay_ends_by_itself(device: Device) -> None:
    batcher = Batcher(device, Doubler(), BatchQueue(3, 100, max_batch_delay_seconds=0.01))
    assert await submit(batcher, 1.0) == [2]


async def test_records_say_what_each_batch_held(device: Device) -> None:
    records: list[BatchRecord] = []
    batcher = Batcher(device, Doubler(), BatchQueue(4, 100), records.append)
    await asyncio.gather(submit(batcher, 1, 2, 3), submit(batcher, 4, 5, 6))
    await settle()
    assert [(record.rows, record.reason, len(record.queue_seconds)) for record in records] == [
        (4, "full", 2),
        (2, "idle", 0),
    ]


async def test_short_batches_run_on_the_event_loop_and_long_ones_on_the_thread() -> None:
    device = Device("test", on_loop_seconds=2 * NOTHING)
    runner = Doubler()
    runner.seconds_a_row = NOTHING
    batcher = Batcher(device, runner, BatchQueue(4, 100))
    assert await submit(batcher, 1, 2) == [2, 4]
    assert await submit(batcher, 1, 2, 3) == [2, 4, 6]
    assert runner.threads == ["MainThread", "device-test"]
    assert await submit(batcher, 5) == [10]  # by the thread, if it has not yet gone idle
    device.close()


async def test_large_batches_are_cut_to_fit_the_loop() -> None:
    device = Device("test", on_loop_seconds=70.5 * NOTHING)
    runner = Doubler()
    runner.seconds_a_row = NOTHING
    batcher = Batcher(device, runner, BatchQueue(256, 1000))
    await asyncio.gather(*(submit(batcher, value) for value in range(200)))
    assert [len(batch) for batch in runner.batches] == [70, 70, 60]
    assert set(runner.threads) == {"MainThread"}
    device.close()


async def test_batches_stay_whole_if_the_loop_runs_only_small_ones() -> None:
    device = Device("test", on_loop_seconds=63.5 * NOTHING)
    runner = Doubler()
    runner.seconds_a_row = NOTHING
    batcher = Batcher(device, runner, BatchQueue(256, 1000))
    await asyncio.gather(*(submit(batcher, value) for value in range(200)))
    assert [len(batch) for batch in runner.batches] == [200]
    assert runner.threads == ["device-test"]
    device.close()


@pytest.mark.parametrize("small_too", [False, True])
async def test_a_warm_up_that_was_disturbed_is_mended_by_the_batches_that_run(small_too: bool) -> None:
    """It took a row for 1 s; the event loop has a budget of 2 ms, and a row takes nearly nothing.

    Beside small requests batches are cut to 16 rows at first.
    """
    device = Device("test", on_loop_seconds=0.002)
    runner = Doubler()
    queue = BatchQueue(64, 1000)
    batcher = Batcher(device, runner, queue)
    assert (batcher.on_loop.rows, queue.low_rows, queue.mixed_rows) == (0, 1, 16)
    for _ in range(2000):  # on a busy machine a batch may take long many times
        await asyncio.gather(submit(batcher, *range(64)), *([submit(batcher, 1)] if small_too else []))
        if batcher.on_loop.rows == queue.low_rows == queue.mixed_rows == 64:
            break
    assert batcher.on_loop.rows == queue.low_rows == queue.mixed_rows == 64
    assert 0 < queue.low_seconds < 0.002
    for _ in range(2000):  # the thread of the device takes what comes before it has gone idle
        await submit(batcher, 1)
        if runner.threads[-1] == threading.main_thread().name:
            break
        await asyncio.sleep(0.001)
    assert runner.threads[-1] == threading.main_thread().name
    device.close()


async def test_a_batch_that_overlaps_another_or_fails_tells_nothing_of_its_time() -> None:
    device = Device("test", on_loop_seconds=0.002)
    overlapping, failing = Doubler(depth=2), Doubler()
    failing.error = RuntimeError("broken")
    for runner in (overlapping, failing):
        batcher = Batcher(device, runner, BatchQueue(64, 1000))
        await asyncio.gather(*(submit(batcher, *range(64)) for _ in range(5)), return_exceptions=True)
        assert batcher.on_loop.rows == 0
    device.close()


@pytest.mark.parametrize("depth", [1, 2])
async def test_the_share_of_low_priority_is_of_the_time_that_its_rows_took(
    device: Device, depth: int
) -> None:
    """Two batches in flight overlap, so their times tell too much."""
    runner = Doubler(lasting=0.01, depth=depth)
    runner.seconds_a_row = 0.001
    batcher = Batcher(device, runner, BatchQueue(8, 100, low_share=device.low_share))
    began = time.monotonic()
    await submit(batcher, 1, priority="low")
    device.low_share.last_small = FAR
    assert (device.low_share.due() >= began + 0.01 / LOW_SHARE) == (depth == 1)


async def test_the_loop_turns_between_two_batches_that_run_on_it() -> None:
    device = Device("test", on_loop_seconds=4.0)
    runner = Doubler(lasting=0.02)
    batcher = Batcher(device, runner, BatchQueue(2, 100))
    both = asyncio.gather(submit(batcher, 1, 2), submit(batcher, 3, 4))
    seen = []
    while not both.done():
        seen.append(len(runner.batches))
        await asyncio.sleep(0)
    assert await both == [[2, 4], [6, 8]]
    assert seen.count(1) >= 1
    device.close()


@pytest.mark.slow
@pytest.mark.parametrize(("on_loop_seconds", "several"), [(5.0, True), (0.001, False)])
async def test_batches_on_the_loop_make_up_for_its_other_work(on_loop_seconds: float, several: bool) -> None:
    device = Device("test", on_loop_seconds)
    runner = Doubler(lasting=0.02)
    runner.seconds_a_row = 0.0001
    batcher = Batcher(device, runner, BatchQueue(2, 100))
    rest = asyncio.gather(*(submit(batcher, value, value) for value in range(9)))
    await asyncio.sleep(0)  # the requests are queued, a turn is due
    seen = []
    for other_work in (0.0, 0.3, 0.0):
        until = time.monotonic() + other_work
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)
        seen.append(len(runner.batches))
    assert seen[0] == 1
    assert (seen[1] - seen[0] > 1) == several
    assert several or seen[2] - seen[1] == 1
    await rest
    device.close()


async def test_batches_on_the_loop_are_short_while_it_refuses() -> None:
    device = Device("test", on_loop_seconds=0.010)
    runner = Doubler()
    runner.seconds_a_row = 0.00003
    batcher = Batcher(device, runner, BatchQueue(256, 512))
    waiting = asyncio.gather(*(submit(batcher, *range(64)) for _ in range(8)))
    refused = submit(batcher, 1.0)
    await waiting
    with pytest.raises(QueueFull):
        await refused
    assert [len(batch) for batch in runner.batches] == [83, 256, 173]  # of 2.5 ms, then as usual
    device.close()


async def test_a_short_batch_that_fails_answers_its_requests() -> None:
    device = Device("test", on_loop_seconds=2.0)
    runner = Doubler()
    runner.error = RuntimeError("broken")
    batcher = Batcher(device, runner, BatchQueue(4, 100))
    with pytest.raises(EngineError, match="broken"):
        await submit(batcher, 1)
    device.close()
