"""One model's requests: queues each, runs its rows in whatever batches they fall into, delivers its outcome.

`queue` forms the batches, `deadlines` expires requests, `device` decides when a batch runs, and the runner
computes it. Lives on the event loop.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from service.batching.batch_seconds import BatchSeconds
from service.batching.batch_sizes import low_rows, mixed_rows, on_loop_rows
from service.batching.deadlines import Deadlines
from service.batching.device import Device, Runner
from service.batching.items import Group, Item
from service.batching.mirror import QueueState
from service.batching.queue import Batch, BatchQueue, BatchRecord, Part
from service.batching.request import (
    Array,
    Done,
    GroupDone,
    InferenceRequest,
    InferenceResult,
    Outcome,
    Priority,
    RequestGroup,
)
from service.batching.retries import Refusal
from service.errors import EngineError, RowsFailed, ShuttingDown

logger = logging.getLogger(__name__)


class Batcher:
    """One model version's queue on a device. Lives on the event loop.

    version: the model's, for the results.
    record: called with the record of each batch that has run.
    scored: the place of the output that the records keep, or None.
    """

    def __init__(
        self,
        device: Device,
        runner: Runner,
        queue: BatchQueue,
        record: Callable[[BatchRecord], None] = lambda _: None,
        version: int = 1,
        scored: int | None = None,
    ) -> None:
        self.runner = runner
        self._scored = scored
        self._device = device
        self._queue = queue
        self._record = record
        self._version = version
        self._loop = asyncio.get_running_loop()
        self._entered = False
        self._release: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines(queue, device.lock)
        self._seconds = BatchSeconds(runner.seconds_for, runner.buckets)
        self._decide_sizes()
        self._closed = False
        self._unanswered = 0
        self._all_answered = asyncio.Event()

    def _decide_sizes(self) -> None:
        """Decide how large batches are and which run on the event loop, from how long they take."""
        queue, seconds_for, most = self._queue, self._seconds.of, self._queue.max_batch_size
        queue.mixed_rows = mixed_rows(seconds_for, most)
        queue.low_rows = low_rows(seconds_for, most)
        queue.low_seconds = seconds_for(queue.low_rows)
        budgets = self._device.on_loop_seconds, self._device.brief_seconds
        self.on_loop = on_loop_rows(seconds_for, most, *budgets)
        # The rows that a batch on the loop is cut to: without a rejection since the last one, and with one.
        self._cut = self.on_loop.most(rejecting=False), self.on_loop.most(rejecting=True)

    @property
    def rows_waiting(self) -> int:
        """Rows in the queue; those of batches in flight are not counted."""
        return self._queue.rows

    @property
    def requests_waiting(self) -> int:
        """Requests that have rows in the queue."""
        return self._queue.requests

    @property
    def requests_running(self) -> int:
        """Requests without an outcome whose rows have all left the queue."""
        return self._unanswered - self._queue.requests

    def queue_state(self) -> QueueState | None:
        """Return what the queue decides by about new requests; None if it holds none."""
        return QueueState.of(self._queue) if self._queue.rows else None

    def check_admission(self, rows: int, seconds: float, priority: Priority = "normal") -> Refusal | None:
        """Return the reason to reject `rows` more rows, or None. seconds: until their deadline."""
        return self._queue.check_admission(rows, seconds, priority)

    def note_rejection(self, refusal: Refusal, rows: int) -> float:
        """Note that `check_admission` rejected a request; returns the seconds after which it should return.

        The next batch on the loop is kept short.
        """
        return self._queue.note_rejection(refusal, rows, time.monotonic())

    def submit(
        self, request: InferenceRequest, inputs: tuple[Array, ...], done: Done, *, admitted: bool = False
    ) -> Item:
        """Queue a request's rows, to run as part of whatever batches they fall into.

        inputs: the request's arrays in the order of the graph's inputs, already validated.
        done: called once, in a later iteration of the event loop, with the result; or with DeadlineExceeded
            if rows are still queued at the deadline, or EngineError if a batch failed.
        admitted: `check_admission` accepted it in this iteration of the event loop.
        Returns the item that `cancel` accepts. Raises QueueFull if `check_admission` gives a reason,
        DeadlineExceeded if the deadline has passed, and ShuttingDown after `close`.
        """
        if self._closed:
            raise ShuttingDown("the model is being unloaded and accepts no new requests")
        _, _, _, rows, deadline, priority, traceparent = request
        item = Item(inputs, rows, time.monotonic(), deadline, done, priority, traceparent)
        with self._device.lock:
            self._queue.push(item, admitted=admitted)
            if not self._entered:
                self._enter_when_due()
            next_deadline = self._queue.next_deadline
        self._unanswered += 1
        if next_deadline < self._deadlines.earliest:
            self._deadlines.watch(next_deadline, self._settle)
        return item

    def submit_group(
        self, requests: RequestGroup, inputs: tuple[Array, ...], deliver: GroupDone
    ) -> Group | None:
        """Queue the rows of requests that came together; see `submit`.

        Returns the group that `cancel_one` accepts, or None if each request has to be submitted on its own:
        one of them might be rejected, or is not small. Raises ShuttingDown after `close`.
        """
        if self._closed:
            raise ShuttingDown("the model is being unloaded and accepts no new requests")
        ends = list(itertools.accumulate(requests.rows))
        group = Group(
            inputs,
            ends[-1],
            time.monotonic(),
            min(requests.deadlines),
            _never,
            requests.priority,
            ends=ends,
            deadlines=requests.deadlines,
            deliver=deliver,
            traceparents=requests.traceparents,
        )
        with self._device.lock:
            if not self._queue.push_group(group, max(requests.rows)):
                return None
            if not self._entered:
                self._enter_when_due()
            next_deadline = self._queue.next_deadline
        self._unanswered += len(ends)
        if next_deadline < self._deadlines.earliest:
            self._deadlines.watch(next_deadline, self._settle)
        return group

    def cancel(self, item: Item) -> None:
        """Cancel a request: remove its queued rows from the queue; its `done` is never called."""
        if not item.settled:
            with self._device.lock:
                self._queue.remove(item, time.monotonic())
            item.settled = True
            self._count_answered()

    def cancel_one(self, group: Group, request: int) -> None:
        """Cancel one request of a group; see `cancel`. Its rows run only if a batch has some already."""
        if request not in group.apart_items:
            with self._device.lock:
                if request not in group.begun_in(0, group.taken):
                    self._queue.split_up(group)
        item = group.apart_items.get(request)
        if item is not None:
            self.cancel(item)
        elif request >= group.first and request not in group.cancelled:
            group.cancelled.add(request)
            self._count_answered()

    def has_full_batch(self) -> bool:
        """See `service.batching.device.Source`."""
        return self._queue.holds_full_batch()

    def take(self, *, on_loop: bool) -> Batch:
        """Hand the device the next batch; see `service.batching.device.Source`.

        Sets no timer for rows that are due later, because timers belong to the event loop: `finish` sets it,
        or the next iteration of the loop if there is no batch.
        """
        queue, now = self._queue, time.monotonic()
        batch = queue.take(self._cut[queue.refused_since_batch] if on_loop else None, now)
        self._entered = queue.release_at(now) == -math.inf
        if self._entered:
            self._device.enter(self)
        elif queue.rows and not batch.parts:
            self._loop.call_soon_threadsafe(self._enter_unless_entered)
        return batch

    @property
    def full_batch_rows(self) -> int:
        """Rows of the largest batch that is formed."""
        return self._cut[0] or self._queue.max_batch_size

    def finish(
        self,
        batch: Batch,
        outcome: tuple[Array, ...] | Exception,
        started: float,
        ended: float,
        *,
        on_loop: bool = False,
    ) -> None:
        """Deliver to a batch's requests their rows of the outputs, or its error."""
        queue_seconds, request_rows, traceparents = [], [], []
        requests = len(batch.parts)
        for item, start, stop in batch.parts:
            if isinstance(item, Group):
                requests += len(item.held_in(start, stop)) - 1
                begun = item.begun_in(start, stop)
                if begun:
                    queue_seconds += [started - item.enqueued] * len(begun)
                    request_rows += item.rows_of(begun)
                if item.traceparents is not None:
                    traceparents += item.traced_in(start, stop)
                continue
            if start == 0:
                item.queue_seconds = started - item.enqueued
                queue_seconds.append(item.queue_seconds)
                request_rows.append(item.rows)
            if item.traceparent is not None:
                traceparents.append(item.traceparent)
        failed, scored = isinstance(outcome, Exception), None
        failed_requests = failed_rows = 0
        if isinstance(outcome, RowsFailed):
            logger.error("%d of %d rows failed", outcome.failed.sum(), batch.rows, exc_info=outcome)
            failed_requests, failed_rows = self._deliver_apart(batch, outcome, started, ended)
        elif isinstance(outcome, Exception):
            logger.error("a batch of %d rows failed", batch.rows, exc_info=outcome)
            failed_requests, failed_rows = requests, batch.rows
            self._fail(batch.parts, f"the batch failed: {outcome}")
        else:
            if self._scored is not None:
                scored = outcome[self._scored][: batch.rows]
            self._deliver(batch, outcome, started, ended)
        try:
            self._record(
                BatchRecord(
                    batch.rows,
                    batch.reason,
                    started,
                    ended - started,
                    queue_seconds,
                    failed,
                    traceparents,
                    on_loop,
                    request_rows,
                    scored,
                    requests,
                    failed_requests,
                    failed_rows,
                )
            )
        except Exception:  # the queued requests must not be lost with it
            logger.exception("a batch could not be recorded")
        with self._device.lock:
            if ended - started < self._seconds.below[batch.rows] and not failed and self.runner.depth == 1:
                self._seconds.learn(batch.rows, ended - started)
                self._decide_sizes()
            if batch.low_rows and self.runner.depth == 1:
                self._queue.note_low_ended(batch, started, ended - started)
            self._queue.pace.note_batch(batch.rows, started, ended, self._queue.rows_due(ended))
            if not self._entered:
                self._enter_when_due()

    async def close(self) -> None:
        """Reject new requests, then wait until every accepted one has its outcome."""
        self._closed = True
        if self._unanswered:
            await self._all_answered.wait()
        self._deadlines.close()
        if self._release is not None:
            self._release.cancel()  # it would keep the model alive for a request that has its outcome

    def _settle(self, item: Item, outcome: Outcome) -> None:
        if not item.settled:
            item.settled = True
            self._count_answered()
            try:
                item.done(outcome)
            except Exception:  # the rest of the batch must not be lost with it
                logger.exception("a request's outcome could not be delivered")

    def _settle_some(self, group: Group, last: int, outcome: Outcome) -> None:
        """Deliver the outcome of a group's requests that have none yet, up to `last`."""
        first, group.first = group.first, max(group.first, last)
        waiting = last - first
        if group.cancelled:
            waiting -= sum(first <= request < last for request in group.cancelled)
        if waiting > 0:
            self._count_answered(waiting)
            try:
                group.deliver(first, last, outcome)
            except Exception:  # as above
                logger.exception("requests' outcomes could not be delivered")

    def _count_answered(self, requests: int = 1) -> None:
        self._unanswered -= requests
        if self._closed and not self._unanswered:
            self._all_answered.set()

    def _deliver(self, batch: Batch, outputs: tuple[Array, ...], started: float, ended: float) -> None:
        compute_seconds = ended - started
        offset = 0
        for item, start, stop in batch.parts:
            end = offset + stop - start
            rows = tuple([output[offset:end] for output in outputs])
            offset = end
            if isinstance(item, Group):
                self._deliver_some(item, start, stop, rows, started, compute_seconds, batch.rows)
                continue
            item.outputs.append(rows)
            item.compute_seconds += compute_seconds
            if stop == item.rows:
                self._settle(item, self._result(item, batch.rows))

    def _result(self, item: Item, batch_rows: int) -> InferenceResult:
        pieces = item.outputs
        whole = pieces[0] if len(pieces) == 1 else _joined(pieces)
        return InferenceResult(self._version, whole, item.queue_seconds, item.compute_seconds, batch_rows)

    def _deliver_some(
        self,
        group: Group,
        start: int,
        stop: int,
        outputs: tuple[Array, ...],
        started: float,
        compute_seconds: float,
        batch_rows: int,
    ) -> None:
        """Deliver to a group's requests their rows of the outputs, which are the group's rows start..stop."""
        last, begin = group.ended_by(stop), group.start_of(group.first)
        row = max(start, begin)  # the rows before it are of requests that have failed
        if begin < start:  # the first of them is in an earlier batch too
            row = min(stop, group.ends[group.first])
            group.outputs.append(tuple([output[: row - start] for output in outputs]))
            group.compute_seconds += compute_seconds
            if last > group.first:
                self._settle_some(group, group.first + 1, self._result(group, batch_rows))
        if last > group.first:
            end = group.ends[last - 1]
            whole = tuple([output[row - start : end - start] for output in outputs])
            queue_seconds = started - group.enqueued
            result = InferenceResult(self._version, whole, queue_seconds, compute_seconds, batch_rows)
            self._settle_some(group, last, result)
            row = end
        if row < stop:  # the next one goes on in a later batch
            group.outputs = [tuple([output[row - start :] for output in outputs])]
            group.queue_seconds, group.compute_seconds = started - group.enqueued, compute_seconds

    def _deliver_apart(
        self, batch: Batch, error: RowsFailed, started: float, ended: float
    ) -> tuple[int, int]:
        """Deliver the error to the requests that have failed rows, and to the others their outputs.

        Returns how many requests got the error, and how many rows of the batch they have.
        """
        offset = failed_requests = failed_rows = 0
        for item, start, stop in batch.parts:
            for first, last in _requests_in(item, start, stop):
                rows = slice(offset + first - start, offset + last - start)
                parts = [Part(item, first, last)]
                if error.failed[rows].any():
                    failed_requests, failed_rows = failed_requests + 1, failed_rows + last - first
                    self._fail(parts, f"the model failed on the request's rows: {error}")
                else:
                    outputs = tuple([output[rows] for output in error.outputs])
                    self._deliver(replace(batch, parts=parts), outputs, started, ended)
            offset += stop - start
        return failed_requests, failed_rows

    def _fail(self, parts: Sequence[Part], reason: str) -> None:
        outcome = EngineError(reason)
        for item, _, stop in parts:
            if isinstance(item, Group):
                failed = item.begun_in(0, stop).stop
                with self._device.lock:
                    self._queue.split_up(item)
                    if failed == len(item.ends):  # the rest of a request that has rows in this batch
                        self._queue.remove(item, time.monotonic())
                self._settle_some(item, failed, outcome)
                continue
            with self._device.lock:
                self._queue.remove(item, time.monotonic())
            self._settle(item, outcome)

    def _enter_when_due(self) -> None:
        """Ask the device to take a batch now, or set a timer. The lock must be held."""
        now = time.monotonic()
        at = self._queue.release_at(now)
        if at == math.inf:
            return
        wait = at - now
        if wait <= 0:
            self._entered = True
            self._device.enter(self)
        elif self._release is None:
            self._release = self._loop.call_later(wait, self._release_now)

    def _release_now(self) -> None:
        self._release = None
        self._enter_unless_entered()

    def _enter_unless_entered(self) -> None:
        with self._device.lock:
            if not self._entered:
                self._enter_when_due()


def _requests_in(item: Item, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the rows among start..stop of each request that an item holds."""
    if not isinstance(item, Group):
        return [(start, stop)]
    return [
        (max(start, item.start_of(each)), min(stop, item.ends[each])) for each in item.held_in(start, stop)
    ]


def _never(_: Outcome) -> None:
    raise AssertionError("a group's outcomes go to its requests")


def _joined(outputs: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
