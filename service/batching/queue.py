"""Which rows form the next batch: pure decisions, with the time as an argument.

Knows nothing of threads, timers or models; `service.batching.batcher` acts on what is decided here.
"""

import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from service.errors import QueueFull

Array = NDArray[Any]
Reason = Literal["full", "idle", "delay"]

ROW_SECONDS_GAIN = 0.1
"""The latest batch's part in what a row is thought to take."""

DEADLINE_SHARE = 0.8
"""A request is taken where its answer is expected in this part of the time that it has. The rest is for what
the queue does not see: the time before the request was read, the way of the answer, and a pace that changes.
Without it, of 16-image requests at 1.2 and 2 times the capacity 17 and 31 % of the answers came late."""

SMALL_SHARE = 8
"""A request of at most 1/8 of a batch is small: half of each batch is kept for those while any wait."""


class Answer(NamedTuple):
    """One request's outputs and what it took to get them.

    outputs: one array per graph output, each (rows, ...), owned by the caller.
    queue_seconds: from submission until its first batch started.
    compute_seconds: summed over the batches that held its rows.
    batch_rows: rows in the last of these batches, other requests' included.
    """

    outputs: tuple[Array, ...]
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


Outcome = Answer | Exception


@dataclass(slots=True, eq=False)
class Item:
    """One request's rows, from submission to answer.

    inputs: one array per graph input, each (rows, ...).
    done: told the outcome, once. settled: whether it was told, or does not want to be told any more.
    taken: rows handed out in batches. left: whether it is out of the queue.
    traceparent: the span that asks, where it is traced.
    """

    inputs: tuple[Array, ...]
    rows: int
    enqueued: float
    deadline: float
    done: Callable[[Outcome], None]
    settled: bool = False
    taken: int = 0
    left: bool = False
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    outputs: list[tuple[Array, ...]] = field(default_factory=list)
    traceparent: str | None = None


class Part(NamedTuple):
    """Rows start..stop of an item, which lie next to each other in a batch."""

    item: Item
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs next, in the order of its rows."""

    parts: list[Part]
    rows: int
    reason: Reason


class BatchQueue:
    """Decides which rows form the next batch. First come first served in each lane.

    Bounded in rows, which is memory, and in requests, which is time: as many small requests as there may be
    rows would wait for seconds, and most of them in vain.

    Small requests have a lane of their own and the first half of every batch, so that they never
    wait for a large one to finish; a large request is split over as many batches as it needs, and
    goes to the end of its lane after each one while it still has a whole batch to go.

    refusing: whether a request was refused since the last batch was formed.
    """

    def __init__(
        self,
        max_batch_size: int,
        max_queue_rows: int,
        max_batch_delay_seconds: float = 0.0,
        max_queue_requests: int = sys.maxsize,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_queue_rows = max_queue_rows
        self.max_batch_delay_seconds = max_batch_delay_seconds
        self.max_queue_requests = max_queue_requests
        self.rows = 0
        self.requests = 0
        self.refusing = False
        self._small_waiting = 0
        self._running_rows = 0
        self._row_seconds = 0.0
        self._ended_with_more: float | None = None
        self.next_deadline = math.inf
        self._small_rows = max(1, max_batch_size // SMALL_SHARE)
        self._small: deque[Item] = deque()
        self._large: deque[Item] = deque()

    def refusal(self, rows: int, seconds: float = math.inf) -> str | None:
        """Why so many rows more are not taken, if they are not. seconds: until their deadline."""
        why = self._refusal(rows, seconds)
        self.refusing = self.refusing or why is not None
        return why

    def _refusal(self, rows: int, seconds: float) -> str | None:
        if self.rows + rows > self.max_queue_rows:
            return (
                f"{self.rows} rows wait and {rows} more were sent, expected at most "
                f"{self.max_queue_rows} waiting"
            )
        if self.requests >= self.max_queue_requests:
            return f"{self.requests} requests wait, expected fewer than {self.max_queue_requests}"
        before = self._running_rows + self.rows_before(rows)
        own = max(rows, self.max_batch_size) if before >= self.max_batch_size else rows
        wait = (before + own) * self._row_seconds if before else 0.0
        if 0 < seconds * DEADLINE_SHARE < wait:
            most = seconds * DEADLINE_SHARE
            return (
                f"an answer would take {wait:.3f} s, expected at most {most:.3f} s, "
                f"as the deadline is in {seconds:.3f} s"
            )
        return None

    def note_pace(self, rows: int, started: float, ended: float) -> None:
        """Learn from a batch what a row takes.

        While rows wait, that is all that passes from the end of a batch to that of the next, be it the event
        loop's work or other models' batches.
        """
        self._running_rows -= rows
        since = started if self._ended_with_more is None else self._ended_with_more
        self._row_seconds += ROW_SECONDS_GAIN * ((ended - since) / rows - self._row_seconds)
        self._ended_with_more = ended if self.rows or self._running_rows else None

    def push(self, item: Item) -> None:
        """Add a request's rows. Raises QueueFull, and keeps nothing, where `refusal` says why."""
        refusal = self.refusal(item.rows, item.deadline - item.enqueued)
        if refusal is not None:
            raise QueueFull(refusal)
        self.rows += item.rows
        self.requests += 1
        if item.deadline < self.next_deadline:
            self.next_deadline = item.deadline
        if item.rows <= self._small_rows:
            self._small_waiting += item.rows
            self._small.append(item)
        else:
            self._large.append(item)

    def rows_before(self, rows: int) -> int:
        """How many of the rows that wait now run, at the least, before a new request of so many rows ends."""
        return self.rows if rows > self._small_rows else self._small_waiting

    def remove(self, item: Item) -> None:
        """Forget the rows of an item that were not handed out yet."""
        if not item.left:
            item.left = True
            self._leave(item, item.rows - item.taken)
            self.requests -= 1

    def _leave(self, item: Item, rows: int) -> None:
        self.rows -= rows
        if item.rows <= self._small_rows:
            self._small_waiting -= rows

    def expire(self, now: float) -> list[Item]:
        """Remove and return the items whose deadline has passed."""
        expired = []
        self.next_deadline = math.inf
        for lane in (self._small, self._large):
            waiting = [item for item in lane if not item.left]
            for item in waiting:
                if item.deadline <= now:
                    self.remove(item)
                    expired.append(item)
                else:
                    self.next_deadline = min(self.next_deadline, item.deadline)
            lane.clear()
            lane.extend(item for item in waiting if not item.left)
        return expired

    def holds_whole_batch(self) -> bool:
        """Whether the next batch cannot grow."""
        return self.rows >= self.max_batch_size

    def release_at(self) -> float:
        """When the rows that wait should run: at once (-inf), at a time, or, with none, never (inf)."""
        if not self.rows:
            return math.inf
        if not self.max_batch_delay_seconds or self.holds_whole_batch():
            return -math.inf
        heads = [item.enqueued for item in (self._head(self._small), self._head(self._large)) if item]
        return min(heads) + self.max_batch_delay_seconds

    def take(self, max_rows: int | None = None) -> Batch:
        """Hand out the next batch, of at most `max_rows` rows if that is given; empty when nothing waits."""
        parts: list[Part] = []
        large_waits = self._head(self._large) is not None
        most = self.max_batch_size if max_rows is None else min(max_rows, self.max_batch_size)
        space = most
        first = space - space // 2 if large_waits else space
        space -= first - self._fill(self._small, first, parts)
        space = self._fill(self._large, space, parts)
        space = self._fill(self._small, space, parts)
        rows = most - space
        self._running_rows += rows
        self.refusing = False
        reason: Reason = "delay" if self.max_batch_delay_seconds else "idle"
        return Batch(parts, rows, reason if space else "full")

    def _fill(self, lane: deque[Item], space: int, parts: list[Part]) -> int:
        """Move rows from the lane into the parts; returns the space that is left."""
        while space and (item := self._head(lane)) is not None:
            start = item.taken
            stop = min(item.rows, start + space)
            parts.append(Part(item, start, stop))
            space -= stop - start
            item.taken = stop
            self._leave(item, stop - start)
            if stop == item.rows:
                item.left = True
                self.requests -= 1
                lane.popleft()
            elif item.rows - stop >= self.max_batch_size:
                lane.rotate(-1)
        return space

    def _head(self, lane: deque[Item]) -> Item | None:
        while lane and lane[0].left:
            lane.popleft()
        return lane[0] if lane else None


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
