"""Runs batches one after another: a device's thread, or turns of the event loop.

Which rows form a batch and whom its answers are for is `service.batching.batcher`'s affair.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from service.batching.on_loop import InlineRows
from service.batching.queue import Array, Batch, Part

Work = Callable[[], None]


class Runner(Protocol):
    """What runs batches; `service.onnx.engine.Engine` is the real one.

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


class Source(Protocol):
    """What a device takes batches from: a `service.batching.batcher.Batcher`, which knows its device in turn.

    inline: which of its batches run on the event loop.
    """

    runner: Runner
    inline: InlineRows

    def take(self, *, inline: bool) -> Batch:
        """The next batch, empty if there is none any more. inline: the event loop would run it.

        Called with the device's lock held, from its thread or the event loop.
        """
        ...

    def has_whole_batch(self) -> bool:
        """Whether `take` would give a batch that cannot grow. Called as `take` is."""
        ...

    def finish(
        self, batch: Batch, outcome: tuple[Array, ...] | Exception, started: float, ended: float
    ) -> None:
        """A batch has run, or failed. Called on the event loop; the times are `time.monotonic`'s."""
        ...


class _Errand:
    """Work other than a batch. done: told how it ended."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.done: Future[None] = Future()

    def run(self) -> None:
        """Do it, unless nobody waits for it any more."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self._work()
        except Exception as error:  # the caller's to judge
            self.done.set_exception(error)
            del self  # its traceback leads to this frame: in a circle it would keep, say, a model that failed
        else:
            self.done.set_result(None)


class _Job(NamedTuple):
    """A batch, and whose it is."""

    source: Source
    batch: Batch


class Device:
    """A thread that runs one batch after another, for all of its sources in turn.

    A batch is formed at the moment that the device is free to run it, and no earlier if it could grow: while
    it is busy the queues fill, and an idle device starts at once. Where the runner has a depth of 2, a batch
    that is whole when the one before it has begun begins too. The thread forms its next batch itself, so that
    it need not wait for an event loop that is busy with the answers of the last one; `lock` guards the turns
    and every queue. All else is called from the event loop.

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
        self._turns: deque[Source | _Errand] = deque()
        self._busy = False
        self._turn_ended = 0.0
        self._ended = 0.0
        self._jobs: SimpleQueue[_Job | _Errand | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"device-{name}", daemon=True)
        self._thread.start()

    async def call(self, work: Work) -> None:
        """Let the thread do other work, in its turn between two batches. Raises what it raises."""
        errand = _Errand(work)
        with self.lock:
            self.enter(errand)
        try:
            await asyncio.wrap_future(errand.done)
        finally:
            del errand  # as in its `run`

    def enter(self, turn: Source | _Errand) -> None:
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
            if isinstance(job, _Errand) or job.batch.rows > job.source.inline.rows:
                self._jobs.put(job)
                return
            running = _Running(job)
            outcome = running.end()
            self._turn_ended = time.monotonic()
            job.source.finish(job.batch, outcome, running.began, self._turn_ended)
            if self._turn_ended - began >= min(elsewhere, self.inline_seconds):
                break
        self._loop.call_soon(self._begin)

    def _work(self) -> None:
        while (turn := self._jobs.get()) is not None:
            while turn is not None:
                if isinstance(turn, _Errand):
                    turn.run()
                else:
                    self._run(turn)
                turn = self._next(inline=False)

    def _run(self, job: _Job) -> None:
        """Run a batch, and with it, one after another, those that may begin before the last one has ended."""
        running = _Running(job)
        while running.job.source.runner.depth > 1 and (following := self._next_whole()) is not None:
            ahead, running = running, _Running(following)
            self._end(ahead)
        self._end(running)

    def _end(self, running: "_Running") -> None:
        outcome = running.end()
        # What it waited for the batch before it to end was not its own time.
        started, self._ended = max(running.began, self._ended), time.monotonic()
        source, batch = running.job
        self._loop.call_soon_threadsafe(source.finish, batch, outcome, started, self._ended)

    def _next(self, *, inline: bool) -> _Job | _Errand | None:
        with self.lock:
            while self._turns:
                turn = self._turns.popleft()
                if isinstance(turn, _Errand):
                    return turn
                batch = turn.take(inline=inline)
                if batch.parts:
                    return _Job(turn, batch)
            self._busy = False
        return None

    def _next_whole(self) -> _Job | None:
        """The batch whose turn it is, if it is whole."""
        with self.lock:
            turn = self._turns[0] if self._turns else None
            if turn is None or isinstance(turn, _Errand) or not turn.has_whole_batch():
                return None
            self._turns.popleft()
            return _Job(turn, turn.take(inline=False))


class _Running:
    """A batch that its runner has begun. began: on the clock of `time.monotonic`."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.began = time.monotonic()
        self._error: Exception | None = None
        try:
            parts = [_rows(part) for part in job.batch.parts]
            self._wait = job.source.runner.begin(parts, job.batch.rows)
        except Exception as error:  # the batch's edge: whatever failed, each of its requests is answered
            self._error = error

    def end(self) -> tuple[Array, ...] | Exception:
        """Wait for the batch; its outputs, or its error."""
        failed, self._error = self._error, None  # its traceback leads here: a circle would keep the model
        if failed is not None:
            return failed
        try:
            return self._wait()
        except Exception as error:  # as above
            return error


def _rows(part: Part) -> tuple[Array, ...]:
    inputs = part.item.inputs
    if part.stop - part.start == part.item.rows:
        return inputs
    return tuple(array[part.start : part.stop] for array in inputs)
