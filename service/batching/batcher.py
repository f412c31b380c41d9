"""One model's requests: queues each, runs its rows in whatever batches they fall into, reports its outcome.

`queue` decides which rows go next, `device` when they run, and the runner what a batch computes. Lives on the
event loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable

import numpy as np

from service.batching.device import Device, Runner
from service.batching.on_loop import inline_rows
from service.batching.queue import Answer, Array, Batch, BatchQueue, BatchRecord, Item, Outcome
from service.errors import DeadlineExceeded, EngineError, ShuttingDown
from service.observability.trace_context import current_traceparent

logger = logging.getLogger(__name__)


class Batcher:
    """One model's queue on a device: submit rows, await their answer. Lives on the event loop."""

    def __init__(
        self,
        device: Device,
        runner: Runner,
        queue: BatchQueue,
        record: Callable[[BatchRecord], None] = lambda _: None,
    ) -> None:
        self.runner = runner
        self._device = device
        self._queue = queue
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._entered = False
        self._release: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = math.inf
        self.inline = inline_rows(
            runner.seconds_for, queue.max_batch_size, device.inline_seconds, device.brief_seconds
        )
        self._closed = False
        self._unanswered = 0
        self._all_answered = asyncio.Event()

    @property
    def rows_waiting(self) -> int:
        """Rows in the queue, those of batches that have begun not counted."""
        return self._queue.rows

    @property
    def requests_waiting(self) -> int:
        """Requests of which rows are in the queue."""
        return self._queue.requests

    def refusal(self, rows: int, seconds: float) -> str | None:
        """Why a request of so many rows would not be queued, if so. seconds: until its deadline."""
        return self._queue.refusal(rows, seconds)

    def submit(
        self, inputs: tuple[Array, ...], rows: int, deadline: float, done: Callable[[Outcome], None]
    ) -> Item:
        """Run rows as part of whatever batches they fall into.

        inputs: one array per graph input, each (rows, ...), already checked against the model, and
            not changed by the caller before the answer.
        deadline: on the clock of `time.monotonic`.
        done: called once, later, on the event loop, with the answer; or with DeadlineExceeded at the
            deadline if rows still wait, or EngineError if a batch failed.
        Returns what `cancel` takes. Raises QueueFull, also where the deadline would pass while the
        rows that wait now are run; and ShuttingDown after `close`.
        """
        if self._closed:
            raise ShuttingDown("the model is being unloaded and takes no new requests")
        item = Item(inputs, rows, time.monotonic(), deadline, done, traceparent=current_traceparent.get())
        with self._device.lock:
            self._queue.push(item)
            self._enter_when_due()
            next_deadline = self._queue.next_deadline
        self._unanswered += 1
        self._watch_deadlines(next_deadline)
        return item

    def cancel(self, item: Item) -> None:
        """Nobody waits for this answer any more: take the rows that wait out of the queue."""
        if not item.settled:
            with self._device.lock:
                self._queue.remove(item)
            item.settled = True
            self._count_answered()

    def has_whole_batch(self) -> bool:
        """See `service.batching.device.Source`."""
        return self._queue.holds_whole_batch()

    def take(self, *, inline: bool) -> Batch:
        """The device's turn has come: hand it the next batch; see `service.batching.device.Source`.

        Rows that are left for a later time are asked after when this batch is finished, for timers belong to
        the event loop.
        """
        most = self.inline.most(refusing=self._queue.refusing) if inline else None
        batch = self._queue.take(most)
        self._entered = self._queue.release_at() == -math.inf
        if self._entered:
            self._device.enter(self)
        return batch

    def finish(
        self, batch: Batch, outcome: tuple[Array, ...] | Exception, started: float, ended: float
    ) -> None:
        """Answer a batch's requests with their rows of the outcome, or with its error."""
        failed = isinstance(outcome, Exception)
        queue_seconds = [started - part.item.enqueued for part in batch.parts if part.start == 0]
        if isinstance(outcome, Exception):
            self._fail(batch, outcome)
        else:
            self._answer(batch, outcome, started, ended)
        traceparents = [part.item.traceparent for part in batch.parts if part.item.traceparent]
        record = BatchRecord(
            batch.rows, batch.reason, started, ended - started, queue_seconds, failed, traceparents
        )
        try:
            self._record(record)
        except Exception:  # what waits must not be lost with it
            logger.exception("a batch could not be recorded")
        with self._device.lock:
            self._queue.note_pace(batch.rows, started, ended)
            self._enter_when_due()

    async def close(self) -> None:
        """Refuse new requests, then wait until every accepted one is answered."""
        self._closed = True
        if self._unanswered:
            await self._all_answered.wait()
        for timer in (self._release, self._expiry):
            if timer is not None:
                timer.cancel()  # it would keep the model for the sake of a request that is answered

    def _settle(self, item: Item, outcome: Outcome) -> None:
        if not item.settled:
            item.settled = True
            self._count_answered()
            try:
                item.done(outcome)
            except Exception:  # its batch mates' answers must not be lost with it
                logger.exception("a request could not be told its outcome")

    def _count_answered(self) -> None:
        self._unanswered -= 1
        if self._closed and not self._unanswered:
            self._all_answered.set()

    def _answer(self, batch: Batch, outputs: tuple[Array, ...], started: float, ended: float) -> None:
        offset = 0
        for part in batch.parts:
            item, end = part.item, offset + part.stop - part.start
            item.outputs.append(tuple([output[offset:end] for output in outputs]))
            offset = end
            if part.start == 0:
                item.queue_seconds = started - item.enqueued
            item.compute_seconds += ended - started
            if part.stop == item.rows:
                answer = Answer(_joined(item.outputs), item.queue_seconds, item.compute_seconds, batch.rows)
                self._settle(item, answer)

    def _fail(self, batch: Batch, error: Exception) -> None:
        logger.error("a batch of %d rows failed", batch.rows, exc_info=error)
        for part in batch.parts:
            with self._device.lock:
                self._queue.remove(part.item)
            self._settle(part.item, EngineError(f"the batch failed: {error}"))

    def _enter_when_due(self) -> None:
        """Ask for a turn now, or set a timer. The lock must be held."""
        if self._entered:
            return
        at = self._queue.release_at()
        wait = at - time.monotonic()
        if wait <= 0:
            self._entered = True
            self._device.enter(self)
        elif self._release is None and at < math.inf:
            self._release = self._loop.call_later(wait, self._release_now)

    def _release_now(self) -> None:
        self._release = None
        with self._device.lock:
            self._enter_when_due()

    def _watch_deadlines(self, next_deadline: float) -> None:
        if next_deadline >= self._expiry_at:
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry_at = next_deadline
        self._expiry = self._loop.call_later(max(0.0, next_deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._expiry, self._expiry_at = None, math.inf
        now = time.monotonic()
        with self._device.lock:
            expired = self._queue.expire(now)
            next_deadline = self._queue.next_deadline
        for item in expired:
            waited = now - item.enqueued
            self._settle(
                item, DeadlineExceeded(f"{item.rows} rows waited {waited:.3f} s, their deadline has passed")
            )
        self._watch_deadlines(next_deadline)


def _joined(outputs: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    if len(outputs) == 1:
        return outputs[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
