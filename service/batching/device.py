"""Runs batches one after another: on a device's thread, or on the event loop.

`batcher` decides which rows form a batch, and delivers the results.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from service.batching.batch_sizes import OnLoopRows
from service.batching.low_share import LowShare
from service.batching.queue import Batch
from service.batching.request import Array

Work = Callable[[], None]


class Runner(Protocol):
    """Runs batches; `service.onnx.engine.Engine` implements it.

    depth: how many batches may be in flight, 1 or 2.
    """

    depth: int

    @property
    def buckets(self) -> Sequence[int]:
        """The sizes that batches are padded to, ascending; the last is the most rows that a batch has."""
        ...

    def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
        """Start the parts as one batch; with depth 1 it may block until the batch is done.

        Returns a function that waits for the batch and returns its outputs. Only one thread at a time calls
        either, and the batches are waited for in the order in which they began.
        """
        ...

    def seconds_for(self, rows: int) -> float:
        """Return how long a batch of `rows` rows is expected to take."""
        ...


class Source(Protocol):
    """A source of batches for a device: a `service.batching.batcher.Batcher`.

    on_loop: which of its batches run on the event loop.
    """

    runner: Runner
    on_loop: OnLoopRows

    def take(self, *, on_loop: bool) -> Batch:
        """Return the next batch; empty if no rows are left. on_loop: the event loop would run it.

        Called with the device's lock held, from its thread or the event loop.
        """
        ...

    def has_full_batch(self) -> bool:
        """Whether `take` would return a batch that cannot grow. Called under the same conditions."""
        ...

    def finish(
        self,
        batch: Batch,
        outcome: tuple[Array, ...] | Exception,
        started: float,
        ended: float,
        *,
        on_loop: bool = False,
    ) -> None:
        """Handle a batch that has run or failed; on the event loop. The times are `time.monotonic`'s.

        on_loop: the event loop ran it.
        """
        ...


class _Errand:
    """Work other than a batch. done: resolved when it has run."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.done: Future[None] = Future()

    def run(self) -> None:
        """Do the work, unless the caller has been cancelled."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self._work()
        except Exception as error:  # the caller handles it
            self.done.set_exception(error)
            del self  # the traceback refers to this frame: a reference cycle would keep, say, a failed model
        else:
            self.done.set_result(None)


class _Job(NamedTuple):
    """A batch and the source that it came from."""

    source: Source
    batch: Batch


class Device:
    """A thread that runs one batch after another, for all of its sources alternately.

    A batch that can still grow is formed only when the device is free: while it is busy the queues fill, and
    an idle device starts at once. If the runner has a depth of 2, a full batch begins while the previous one
    still runs. The thread forms its next batch itself, so it need not wait for an event loop that is busy
    with the last one's responses; `lock` guards the order of the sources and every queue. Everything else is
    called from the event loop.

    on_loop_seconds: a source's batches run on the event loop instead of the thread if ON_LOOP_ROWS are
        expected to take no longer than this. They are cut to fit, and between two of them the loop reads and
        responds. If that takes longer than a batch, several run in the next iteration, so that reading and
        rejecting leave half of the loop to the accepted requests.
    brief_seconds: a slower model's batches run on the event loop only if they are expected to take no longer
        than this; None for on_loop_seconds.
    busy_seconds: wall time in which a batch ran, on the thread or on the event loop.
    low_share: of all queues, guarded by the lock as they are.
    """

    def __init__(self, name: str, on_loop_seconds: float = 0.0, brief_seconds: float | None = None) -> None:
        self.lock = threading.Lock()
        self.on_loop_seconds = on_loop_seconds
        self.brief_seconds = on_loop_seconds if brief_seconds is None else brief_seconds
        self._loop = asyncio.get_running_loop()
        self._entered: deque[Source | _Errand] = deque()
        self._busy = False
        self._batch_ended = 0.0
        self._ended = 0.0
        self.busy_seconds = 0.0
        self.low_share = LowShare()
        self._jobs: SimpleQueue[_Job | _Errand | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"device-{name}", daemon=True)
        self._thread.start()

    async def call(self, work: Work) -> None:
        """Have the thread do other work, between two batches. Raises the work's own errors."""
        errand = _Errand(work)
        with self.lock:
            self.enter(errand)
        try:
            await asyncio.wrap_future(errand.done)
        finally:
            del errand  # see `_Errand.run`

    def enter(self, entry: Source | _Errand) -> None:
        """Queue an entry to run after those that entered before. The lock must be held."""
        self._entered.append(entry)
        if not self._busy:
            self._busy = True
            self._batch_ended = time.monotonic()
            # In the next iteration of the event loop: requests that arrived together run as one batch.
            self._loop.call_soon(self._run_on_loop)

    def close(self) -> None:
        """Stop the thread once it has run the batches that it was given."""
        self._jobs.put(None)
        self._thread.join()

    def _run_on_loop(self) -> None:
        """Run short batches here for one iteration, or hand all that follow to the thread."""
        began = time.monotonic()
        elsewhere = began - self._batch_ended
        while True:
            job = self._next(on_loop=True)
            if job is None:
                return
            if isinstance(job, _Errand) or job.batch.rows > job.source.on_loop.rows:
                self._jobs.put(job)
                return
            running = _Running(job)
            outcome = running.wait()
            self._batch_ended = time.monotonic()
            self.busy_seconds += self._batch_ended - running.began
            job.source.finish(job.batch, outcome, running.began, self._batch_ended, on_loop=True)
            del outcome  # an error's traceback refers to this frame: a reference cycle would keep the rows
            if self._batch_ended - began >= min(elsewhere, self.on_loop_seconds):
                break
        self._loop.call_soon(self._run_on_loop)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            while job is not None:
                if isinstance(job, _Errand):
                    job.run()
                else:
                    self._run(job)
                job = self._next(on_loop=False)

    def _run(self, job: _Job) -> None:
        """Run a batch, and after it those that may begin before the previous one has ended."""
        running = _Running(job)
        while running.job.source.runner.depth > 1 and (following := self._next_full()) is not None:
            ahead, running = running, _Running(following)
            self._end(ahead)
        self._end(running)

    def _end(self, running: "_Running") -> None:
        outcome = running.wait()
        # Without the time that it waited for the previous batch to end.
        started, self._ended = max(running.began, self._ended), time.monotonic()
        self.busy_seconds += self._ended - started
        source, batch = running.job
        self._loop.call_soon_threadsafe(source.finish, batch, outcome, started, self._ended)
        del outcome  # as above

    def _next(self, *, on_loop: bool) -> _Job | _Errand | None:
        with self.lock:
            while self._entered:
                entry = self._entered.popleft()
                if isinstance(entry, _Errand):
                    return entry
                batch = entry.take(on_loop=on_loop)
                if batch.parts:
                    return _Job(entry, batch)
            self._busy = False
        return None

    def _next_full(self) -> _Job | None:
        """Return the next batch if it is full, else None."""
        with self.lock:
            entry = self._entered[0] if self._entered else None
            if entry is None or isinstance(entry, _Errand) or not entry.has_full_batch():
                return None
            self._entered.popleft()
            batch = entry.take(on_loop=False)
            return _Job(entry, batch) if batch.parts else None


class _Running:
    """A batch that its runner has begun. began: on the clock of `time.monotonic`."""

    __slots__ = ("_error", "_wait", "began", "job")

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.began = time.monotonic()
        self._error: Exception | None = None
        try:
            parts = []
            for item, start, stop in job.batch.parts:
                whole = stop - start == item.rows
                parts.append(item.inputs if whole else tuple([array[start:stop] for array in item.inputs]))
            self._wait = job.source.runner.begin(parts, job.batch.rows)
        except Exception as error:  # the batch's edge: whatever failed, each of its requests gets an outcome
            self._error = error

    def wait(self) -> tuple[Array, ...] | Exception:
        """Wait for the batch; returns its outputs, or its error."""
        # The traceback refers to this object: a reference cycle would keep the model.
        failed, self._error = self._error, None
        if failed is not None:
            return failed
        try:
            return self._wait()
        except Exception as error:  # as above
            return error
