"""Requests that came together: whatever happens to some of them, each gets its own outcome, once."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.batching.batcher import Batcher
from service.batching.items import Group, Item
from service.batching.queue import Batch, BatchQueue, BatchRecord
from service.batching.request import Array, InferenceRequest, InferenceResult, Outcome, Priority, RequestGroup
from service.errors import DeadlineExceeded, EngineError, QueueFull, RowsFailed

NEAR, FAR = 1e6, 1e9
"""Seconds: no test takes as long, so only what it does itself makes deadlines pass."""


class Runner:
    """Is never run: the test takes batches, and finishes them."""

    depth = 2
    buckets = range(1, 257)

    def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
        raise NotImplementedError

    def seconds_for(self, rows: int) -> float:
        return 1.0 * rows


class Device:
    """Does nothing by itself."""

    on_loop_seconds = brief_seconds = 0.0

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def enter(self, entry: object) -> None:
        """Wait until the test takes a batch."""


class Bench:
    """A batcher whose batches begin and end as the test says, and what its requests got.

    rows: of each request, as values that no other row has. got: its outcomes. wrong: values that failed on
        their own.
    """

    def __init__(self, max_batch_size: int, max_queue_rows: int = 10_000, max_queue_requests: int = 10_000):
        self.queue = BatchQueue(max_batch_size, max_queue_rows, 0.0, max_queue_requests)
        self.records: list[BatchRecord] = []
        self.batcher = Batcher(Device(), Runner(), self.queue, self.records.append)  # type: ignore[arg-type]
        self.queue.low_seconds = 0.0  # rows of low priority need not wait for their turn
        # The queue would take the time that `expire` lets pass for the device's, and reject what comes next.
        for pace in (self.queue.pace, self.queue._low_pace):
            pace.note_none_waiting = lambda now: None  # type: ignore[method-assign]  # noqa: ARG005
        self.rows: list[Array] = []
        self.got: list[list[Outcome]] = []
        self.cancels: list[Callable[[], None]] = []
        self.cancelled: set[int] = set()
        self.running: list[tuple[Batch, Array]] = []
        self.wrong: set[float] = set()

    def new(self, rows: int) -> Array:
        values = 1000.0 * len(self.rows) + np.arange(rows, dtype=np.float64)[:, None]
        self.rows.append(values)
        self.got.append([])
        return values

    def submit(self, rows: int, seconds: float, priority: Priority = "normal") -> None:
        values = self.new(rows)
        request = InferenceRequest("any", None, {}, rows, time.monotonic() + seconds, priority)
        item = self.batcher.submit(request, (values,), self.got[-1].append)
        self.cancels.append(partial(self.batcher.cancel, item))

    def submit_group(
        self,
        rows: Sequence[int],
        seconds: Sequence[float],
        priority: Priority = "normal",
        traceparents: Sequence[str | None] | None = None,
    ) -> bool:
        """Whether the group was accepted as one."""
        before = len(self.rows)
        values = np.concatenate([self.new(each) for each in rows])
        deadlines = [time.monotonic() + each for each in seconds]
        group = RequestGroup("any", None, {}, rows, deadlines, priority, traceparents)
        queued = self.batcher.submit_group(group, (values,), partial(self.deliver, before))
        if queued is None:
            del self.rows[before:], self.got[before:]
            return False
        self.cancels += [partial(self.batcher.cancel_one, queued, index) for index in range(len(rows))]
        return True

    def deliver(self, before: int, first: int, last: int, outcome: Outcome) -> None:
        start = 0
        for index in range(before + first, before + last):
            stop = start + len(self.rows[index])
            if index not in self.cancelled:
                self.got[index].append(part_of(outcome, start, stop))
            start = stop

    def take(self) -> None:
        if len(self.running) == Runner.depth:
            return
        batch = self.batcher.take(on_loop=False)
        if batch.parts:
            # What the device does: a part that is a whole item is its arrays as they are.
            parts = [
                item.inputs[0] if stop - start == item.rows else item.inputs[0][start:stop]
                for item, start, stop in batch.parts
            ]
            values = np.concatenate(parts)
            assert len(values) == batch.rows
            assert len({part.item for part in batch.parts}) == len(batch.parts)
            self.running.append((batch, values))

    def finish(self, error: Exception | None = None) -> None:
        if self.running:
            batch, values = self.running.pop(0)
            now = time.monotonic()
            self.batcher.finish(batch, error or (values * 2,), now, now)
            self.check_record(values, np.full(len(values), error is not None))

    def finish_partly(self, failing: int) -> None:
        """Let some rows of the batch fail. failing: a bit for each of the first rows."""
        if self.running:
            batch, values = self.running.pop(0)
            failed = np.array([failing >> row & 1 for row in range(len(values))], bool)
            self.wrong |= set(values[failed, 0].tolist())
            outputs = np.where(failed[:, None], -1, values * 2)
            now = time.monotonic()
            self.batcher.finish(batch, RowsFailed("no such number", (outputs,), failed), now, now)
            self.check_record(values, failed)

    def check_record(self, values: Array, failed: Array) -> None:
        """Compare the last record with the batch's rows, of which some failed."""
        of_request = values[:, 0] // 1000
        failed_requests = np.unique(of_request[failed])
        failed_rows = int(np.isin(of_request, failed_requests).sum())
        record = self.records[-1]
        assert record.requests == len(np.unique(of_request))
        assert (record.failed_requests, record.failed_rows) == (len(failed_requests), failed_rows)

    def expire(self) -> None:
        """Let the near deadlines pass."""
        for item in self.queue.expire(time.monotonic() + (NEAR + FAR) / 2):
            assert not isinstance(item, Group)
            self.batcher._settle(item, DeadlineExceeded("late"))

    def cancel(self, index: int) -> None:
        if self.cancels:
            self.cancelled.add(index % len(self.cancels))
            self.cancels[index % len(self.cancels)]()

    def drain(self) -> None:
        while self.queue.rows or self.running:
            self.take()
            self.finish()


def part_of(outcome: Outcome, start: int, stop: int) -> Outcome:
    if isinstance(outcome, InferenceResult):
        return outcome._replace(outputs=tuple(output[start:stop] for output in outcome.outputs))
    return outcome


def run(test: Callable[[], None]) -> None:
    async def on_a_loop() -> None:
        test()

    asyncio.run(on_a_loop())


seconds = st.sampled_from([NEAR, FAR])
groups = st.tuples(
    st.just("group"),
    st.lists(st.tuples(st.integers(1, 4), seconds), min_size=3, max_size=9),
    st.sampled_from(["low", "low", "normal"]),
)
singles = st.tuples(st.just("one"), st.integers(1, 40), seconds, st.sampled_from(["normal", "low"]))
events = st.sampled_from([("take",), ("take",), ("finish",), ("fail",), ("expire",)])
cancels = st.tuples(st.just("cancel"), st.integers(0, 99))
partial_failures = st.tuples(st.just("fail partly"), st.integers(1, 2**16))
steps = st.lists(
    st.one_of(groups, events, events, events, singles, cancels, partial_failures), min_size=5, max_size=40
)
"""Rows of groups of low priority are split where a batch is full, whatever their size."""


LOW = ("one", 3, NEAR, "low")


@pytest.mark.slow
@settings(max_examples=300)
@given(steps, st.sampled_from([2, 3, 5, 7, 32]))
@example([LOW, ("take",), ("expire",), LOW, ("take",), LOW], 2)
def test_each_request_gets_its_own_outcome_once(steps: list[Any], max_batch_size: int) -> None:
    run(partial(follow, steps, max_batch_size))


def follow(steps: list[Any], max_batch_size: int) -> None:
    bench = Bench(max_batch_size)
    failures = False
    for step in steps:
        match step:
            case "one", rows, until, priority:
                bench.submit(rows, until, priority)
            case "group", parts, priority:
                bench.submit_group([rows for rows, _ in parts], [until for _, until in parts], priority)
            case "cancel", index:
                bench.cancel(index)
            case "fail partly", failing:
                bench.finish_partly(failing)
            case ("fail",):
                failures = True
                bench.finish(RuntimeError("the device fell off the bus"))
            case (name,):
                getattr(bench, name)()
        untaken = [item for lane in lanes(bench.queue) for item in lane.items if not item.dequeued]
        assert bench.queue.rows == sum(item.rows - item.taken for item in untaken)
        assert bench.queue.rows == sum(lane.rows for lane in lanes(bench.queue))
        assert bench.queue.requests == sum(queued_requests(item) for item in untaken)
    bench.drain()
    for index, outcomes in enumerate(bench.got):
        if index in bench.cancelled:
            continue
        (outcome,) = outcomes
        is_wrong = not bench.wrong.isdisjoint(bench.rows[index][:, 0].tolist())
        if isinstance(outcome, InferenceResult):
            assert np.array_equal(outcome.outputs[0], 2 * bench.rows[index])
            assert not is_wrong
        elif isinstance(outcome, EngineError):
            assert failures or is_wrong
        else:
            assert isinstance(outcome, DeadlineExceeded)
    assert (bench.queue.rows, bench.queue.requests) == (0, 0)
    assert bench.batcher.requests_running == 0


def lanes(queue: BatchQueue) -> list[Any]:
    return [queue._small, queue._large, queue._low]


def queued_requests(item: Item) -> int:
    return len(item.ends) - item.ended_by(item.taken) if isinstance(item, Group) else 1


def outcomes_of(bench: Bench) -> list[Any]:
    """What each request got: the first column of its result, or the class of its error."""
    return [
        outcome.outputs[0][:, 0].tolist() if isinstance(outcome, InferenceResult) else type(outcome)
        for outcomes in bench.got
        for outcome in outcomes
    ]


async def test_a_group_is_answered_at_once_with_what_a_batch_completed() -> None:
    bench = Bench(16)
    assert bench.submit_group([1] * 20, [FAR] * 20)
    bench.take()
    assert (bench.queue.rows, bench.queue.requests) == (4, 4)
    bench.finish()
    assert [len(each) for each in bench.got] == [1] * 16 + [0] * 4
    bench.drain()
    assert outcomes_of(bench) == [[2000.0 * index] for index in range(20)]
    assert [len(record.queue_seconds) for record in bench.records] == [16, 4]


async def test_a_request_over_two_batches_counts_the_time_of_both() -> None:
    bench = Bench(8)
    bench.submit(7, FAR)
    assert bench.submit_group([1, 1, 1], [FAR] * 3)
    bench.queue.small_rows = 4
    assert bench.submit_group([4, 4], [FAR] * 2)
    bench.drain()
    assert all(len(each) == 1 for each in bench.got)
    assert outcomes_of(bench)[-2:] == [[8000.0, 8002.0, 8004.0, 8006.0], [10000.0, 10002.0, 10004.0, 10006.0]]
    rows = [rows for record in bench.records for rows in record.request_rows]
    assert sorted(rows) == [1, 1, 1, 4, 4, 7]
    assert [len(record.queue_seconds) for record in bench.records] == [
        len(record.request_rows) for record in bench.records
    ]


async def test_a_request_on_both_sides_of_a_large_one_counts_their_batch_once() -> None:
    bench = Bench(8)
    bench.submit(3, FAR)
    bench.queue.small_rows = 5
    bench.submit(5, FAR)
    bench.take()
    ((batch, values),) = bench.running
    assert values[:, 0].tolist() == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0, 0.0, 1.0, 2.0]
    bench.batcher.finish(batch, (values * 2,), 10.0, 13.0)
    for (outcome,) in bench.got:
        assert isinstance(outcome, InferenceResult)
        assert outcome.compute_seconds == 3.0
    assert outcomes_of(bench) == [[0.0, 2.0, 4.0], [2000.0, 2002.0, 2004.0, 2006.0, 2008.0]]


async def test_a_cancelled_request_is_not_computed() -> None:
    bench = Bench(16)
    bench.submit_group([1] * 4, [FAR] * 4)
    bench.cancel(2)
    bench.cancel(2)
    assert (bench.queue.rows, bench.queue.requests) == (3, 3)
    bench.drain()
    assert [record.rows for record in bench.records] == [3]
    assert [len(each) for each in bench.got] == [1, 1, 0, 1]
    bench.cancel(0)  # it has its outcome
    assert bench.batcher.requests_running == 0


async def test_a_request_that_is_late_leaves_the_others_in_their_order() -> None:
    bench = Bench(16)
    bench.submit_group([1] * 4, [FAR, NEAR, FAR, FAR])
    bench.submit_group([1] * 2, [FAR, FAR])
    bench.expire()
    assert bench.queue.rows == 5
    bench.drain()
    assert outcomes_of(bench) == [[0.0], DeadlineExceeded, [4000.0], [6000.0], [8000.0], [10000.0]]
    assert [record.rows for record in bench.records] == [5]


async def test_a_batch_that_fails_leaves_the_requests_behind_it() -> None:
    bench = Bench(16)
    bench.submit_group([1] * 20, [FAR] * 20)
    bench.take()
    bench.finish(RuntimeError("no"))
    bench.drain()
    assert outcomes_of(bench) == [EngineError] * 16 + [[2000.0 * index] for index in range(16, 20)]


async def test_rows_that_fail_take_no_other_request_with_them() -> None:
    bench = Bench(16)
    bench.submit_group([1, 2, 1, 1, 2], [FAR] * 5)
    bench.submit(2, FAR)
    bench.take()
    bench.finish_partly(0b0000101)
    assert outcomes_of(bench) == [
        EngineError,
        EngineError,
        *([2000.0 * each] for each in (2, 3)),
        *([2000.0 * each, 2000.0 * each + 2] for each in (4, 5)),
    ]
    bench.submit(1, FAR)
    bench.drain()
    assert outcomes_of(bench)[-1] == [12000.0]


@pytest.mark.parametrize(
    ("rows", "until", "priority"),
    [([1, 3], [FAR] * 2, "normal"), ([1] * 9, [FAR] * 9, "normal"), ([1] * 5, [FAR] * 4 + [-1.0], "low")],
    ids=["one is not small", "more than there is room for", "one is late"],
)
async def test_requests_that_differ_in_their_fate_are_submitted_one_by_one(
    rows: list[int], until: list[float], priority: Priority
) -> None:
    bench = Bench(16, max_queue_requests=8)
    assert not bench.submit_group(rows, until, priority)
    assert (bench.queue.rows, bench.queue.requests, bench.batcher.requests_running) == (0, 0, 0)


async def test_a_queue_that_is_too_slow_for_a_deadline_takes_no_group() -> None:
    bench = Bench(4)
    for _ in range(100):
        bench.submit(4, FAR)
        bench.take()
        batch, values = bench.running.pop(0)
        bench.batcher.finish(batch, (values,), 0.0, 4.0)  # a second a row
    bench.submit(1, FAR)
    assert not bench.submit_group([1] * 4, [3.0] * 4)
    assert bench.submit_group([1] * 4, [30.0] * 4)
    with pytest.raises(QueueFull):
        bench.submit(1, 1.0)


async def test_only_traced_requests_of_a_batch_are_reported() -> None:
    bench = Bench(4)
    bench.queue.small_rows = 2
    bench.submit_group([1, 2, 2, 1], [FAR] * 4, traceparents=["a", None, "c", "d"])
    bench.drain()
    assert [record.traceparents for record in bench.records] == [["a", "c"], ["c", "d"]]


async def test_a_request_fails_with_either_of_its_batches() -> None:
    bench = Bench(3)
    assert bench.submit_group([2] * 4, [FAR] * 4, "low")
    bench.take()
    bench.take()
    bench.finish(RuntimeError("no"))
    bench.drain()
    assert outcomes_of(bench) == [EngineError, EngineError, [4000.0, 4002.0], [6000.0, 6002.0]]


async def test_the_rest_of_a_request_that_failed_is_not_computed() -> None:
    bench = Bench(3)
    assert bench.submit_group([2] * 3, [FAR] * 3, "low")
    bench.take()
    bench.finish(RuntimeError("no"))
    bench.drain()
    assert outcomes_of(bench) == [EngineError, EngineError, [4000.0, 4002.0]]
    assert [record.rows for record in bench.records] == [3, 2]
