"""Runs batches: a device's thread, and each model's futures and timers on the event loop.

Which rows go next is `service.batching`'s decision; what a batch computes is the runner's affair.
"""

import asyncio
import bisect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from service.batching import Answer, Array, Batch, BatchQueue, Item, Outcome, Part, Reason
from service.errors import DeadlineExceeded, EngineError, ShuttingDown
from service.traceparent import current_traceparent

logger = logging.getLogger(__name__)

Work = Callable[[], None]

INLINE_ROWS = 64
"""Where the event loop can run so many rows, or the model's largest batch, in the time that it is given, it
runs all, in batches of no more than fit: with so many a row takes nearly as little as it ever will."""

TURN_SECONDS = 0.0025
"""After a refusal the next batch on the loop is cut to so much, or INLINE_ROWS: who is refused should know it
at once, and waits unread meanwhile. It is not the rule, as it costs what many rows in one batch save, 5 to
12 % of the answers to bodies of 16 to 256 images."""


@dataclass(frozen=True, slots=True)
class InlineRows:
    """The largest batches that run on the event loop.

    rows: 0 where none does. refusing_rows: to what larger ones are cut after a refusal, otherwise to `rows`;
        None where larger ones are not cut, but run on the thread.
    """

    rows: int
    refusing_rows: int | None

    def most(self, *, refusing: bool) -> int | None:
        """To how many rows the next batch is cut, if it is. refusing: whether there was a refusal."""
        if self.refusing_rows is None:
            return None
        return self.refusing_rows if refusing else self.rows


class Runner(Protocol):
    """What runs batches; `service.engine.Engine` is the real one.

    depth: how many batches may be under way, 1 or 2.
    """

    depth: int

    def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
        """Begin to run the parts as one batch; with depth 1 it may run to its end.

        Returns what blocks until it has run and returns its outputs. Neither is ever called from two threads
        at a time, and a batch that began earlier is ended earlier.
        """
        ...

    def seconds_for(self, rows: int) -> float:
        """How long a batch of so many rows is expected to take."""
        ...


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What happened to one batch, for metrics and traces.

    started: on the clock of `time.monotonic`. queue_seconds: one figure per request that started.
    traceparents: of its requests that are traced.
    """

    rows: int
    reason: Reason
    started: float
    compute_seconds: float
    queue_seconds: list[float]
    failed: bool
    traceparents: list[str]


class Device:
    """A thread that runs one batch at a time, for all of a device's batchers in turn.

    A batch is formed at the moment that the device is free to run it, never earlier: while it is
    busy the queues fill, and an idle device starts at once. Where the runner has a depth of 2, a batch that
    is whole, and so cannot grow, begins while the one before it runs. The thread forms its next batch itself,
    so that it need not wait for an event loop that is busy with the answers of the last one; `lock`
    guards the turns and every queue. All else is called from the event loop.

    inline_seconds: batches run on the event loop, and not on the thread, where INLINE_ROWS are expected to
        take no longer. They are made to fit, and run in turns, between which the loop reads and answers. If
        that takes longer than a batch, several run in the next turn: reading and refusing leave half of the
        loop to what was taken.
    brief_seconds: of models that are slower, only batches that take no longer; as the former if None.
    """

    def __init__(self, name: str, inline_seconds: float = 0.0, brief_seconds: float | None = None) -> None:
        self.lock = threading.Lock()
        self.inline_seconds = inline_seconds
        self.brief_seconds = inline_seconds if brief_seconds is None else brief_seconds
        self._loop = asyncio.get_running_loop()
        self._turns: deque[Batcher | Work] = deque()
        self._busy = False
        self._turn_ended = 0.0
        self._ended = 0.0
        self._jobs: SimpleQueue[tuple[Batcher, Batch] | Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"device-{name}", daemon=True)
        self._thread.start()

    async def call(self, work: Work) -> None:
        """Let the thread do other work, in its turn between two batches. Raises what it raises."""
        done: Future[None] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                work()
            except Exception as error:  # the caller's to judge
                done.set_exception(error)
            else:
                done.set_result(None)

        with self.lock:
            self.enter(run)
        await asyncio.wrap_future(done)

    def enter(self, turn: "Batcher | Work") -> None:
        """Ask for a turn. The lock must be held."""
        self._turns.append(turn)
        if not self._busy:
            self._busy = True
            self._turn_ended = time.monotonic()
            # Not now but after this turn of the event loop: requests that arrived together batch together.
            self._loop.call_soon(self._begin)

    def close(self) -> None:
        """End the thread after the batches that wait."""
        self._jobs.put(None)
        self._thread.join()

    def _begin(self) -> None:
        """Run short batches here for a turn, or else have the thread run all that follow."""
        began = time.monotonic()
        elsewhere = began - self._turn_ended
        while True:
            job = self._next(inline=True)
            if job is None:
                return
            if not isinstance(job, tuple) or job[1].rows > job[0].inline.rows:
                self._jobs.put(job)
                return
            running = _Running(*job)
            outcome = running.end()
            self._turn_ended = time.monotonic()
            running.batcher.finish(running.batch, outcome, running.began, self._turn_ended)
            if self._turn_ended - began >= min(elsewhere, self.inline_seconds):
                break
        self._loop.call_soon(self._begin)

    def _work(self) -> None:
        running: _Running | None = None
        while (job := self._jobs.get()) is not None:
            while job is not None:
                if isinstance(job, tuple):
                    begun = _Running(*job)
                    if running is not None:
                        self._end(running)
                    running = begun
                    job = self._next_whole() if job[0].runner.depth > 1 else None
                    if job is not None:
                        continue
                    self._end(running)
                    running = None
                else:
                    job()
                job = self._next(inline=False)

    def _end(self, running: "_Running") -> None:
        outcome = running.end()
        # What it waited for the batch before it to end was not its own time.
        started, self._ended = max(running.began, self._ended), time.monotonic()
        self._loop.call_soon_threadsafe(running.batcher.finish, running.batch, outcome, started, self._ended)

    def _next(self, *, inline: bool) -> "tuple[Batcher, Batch] | Work | None":
        with self.lock:
            while self._turns:
                turn = self._turns.popleft()
                if not isinstance(turn, Batcher):
                    return turn
                batch = turn.take(inline=inline)
                if batch.parts:
                    return turn, batch
            self._busy = False
        return None

    def _next_whole(self) -> "tuple[Batcher, Batch] | None":
        """The batch whose turn it is, if it is whole."""
        with self.lock:
            turn = self._turns[0] if self._turns else None
            if not isinstance(turn, Batcher) or not turn.has_whole_batch():
                return None
            self._turns.popleft()
            return turn, turn.take(inline=False)


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
        """Rows in the queue, those of the running batch not counted."""
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
        """Whether `take` would give a batch that cannot grow. The lock must be held."""
        return self._queue.holds_whole_batch()

    def take(self, *, inline: bool) -> Batch:
        """The device's turn has come: hand it the next batch, empty if the rows have left meanwhile.

        inline: the event loop would run it.

        Called by the device, which holds the lock, from its thread or the event loop. Rows that are left for
        a later time are asked after when this batch is finished, for timers belong to the event loop.
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
        self._record(
            BatchRecord(
                batch.rows, batch.reason, started, ended - started, queue_seconds, failed, traceparents
            )
        )
        with self._device.lock:
            self._queue.note_pace(batch.rows, started, ended)
            self._enter_when_due()

    async def close(self) -> None:
        """Refuse new requests, then wait until every accepted one is answered."""
        self._closed = True
        if self._unanswered:
            await self._all_answered.wait()

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


class _Running:
    """A batch that its runner has begun. began: on the clock of `time.monotonic`."""

    def __init__(self, batcher: Batcher, batch: Batch) -> None:
        self.batcher = batcher
        self.batch = batch
        self.began = time.monotonic()
        self._error: Exception | None = None
        try:
            self._wait = batcher.runner.begin([_rows(part) for part in batch.parts], batch.rows)
        except Exception as error:  # the batch's edge: whatever failed, each of its requests is answered
            self._error = error

    def end(self) -> tuple[Array, ...] | Exception:
        """Wait for the batch; its outputs, or its error."""
        if self._error is not None:
            return self._error
        try:
            return self._wait()
        except Exception as error:  # as above
            return error


def inline_rows(
    seconds_for: Callable[[int], float], most: int, inline_seconds: float, brief_seconds: float
) -> InlineRows:
    """Which batches run on the event loop.

    seconds_for: what a batch of so many rows takes, up to `most`. The rest is as `Device` says.
    """
    sizes = range(1, most + 1)
    enough = min(INLINE_ROWS, most)
    rows = bisect.bisect_right(sizes, inline_seconds, key=seconds_for)
    if rows >= enough:
        return InlineRows(rows, max(enough, bisect.bisect_right(sizes, TURN_SECONDS, key=seconds_for)))
    return InlineRows(bisect.bisect_right(sizes, min(inline_seconds, brief_seconds), key=seconds_for), None)


def _rows(part: Part) -> tuple[Array, ...]:
    inputs = part.item.inputs
    if part.stop - part.start == part.item.rows:
        return inputs
    return tuple(array[part.start : part.stop] for array in inputs)


def _joined(outputs: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    if len(outputs) == 1:
        return outputs[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
