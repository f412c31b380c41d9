"""Where a batch is formed: which rows go next. Pure decisions, with the time as an argument.

Knows nothing of threads, timers or models; `batcher` acts on what is decided here.
"""

import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.batching.items import Group, Item
from service.batching.low_share import LowShare
from service.batching.pace import Pace
from service.batching.request import Array, Priority
from service.batching.retries import MAX_RETRY_SECONDS, Refusal, Retries
from service.errors import DeadlineExceeded

Reason = Literal["full", "idle", "delay"]

SMALL_FRACTION = 8
"""A request of at most 1/8 of a batch is small: half of each batch is kept for small ones while any are
queued."""


class Part(NamedTuple):
    """Rows start..stop of an item, which are adjacent in a batch."""

    item: Item
    start: int
    stop: int


@dataclass(slots=True)
class Batch:
    """The rows that run next, in order, one part of each item. low_rows: those of low priority among them."""

    parts: list[Part]
    rows: int
    reason: Reason
    low_rows: int = 0


class BatchRecord(NamedTuple):
    """A batch that has run or failed, for metrics and traces.

    started: on the clock of `time.monotonic`. queue_seconds, request_rows: one figure per request that
        started in this batch.
    traceparents: those of the traced requests with rows in this batch. on_loop: the event loop ran it.
    scored: the rows' output that the batcher keeps for metrics, or None.
    requests: how many have rows in this batch. failed_requests, failed_rows: those that failed with it.
    """

    rows: int
    reason: Reason
    started: float
    compute_seconds: float
    queue_seconds: list[float]
    failed: bool
    traceparents: list[str]
    on_loop: bool = False
    request_rows: Sequence[int] = ()
    scored: Array | None = None
    requests: int = 0
    failed_requests: int = 0
    failed_rows: int = 0


class BatchQueue:
    """Decides which rows form the next batch. First come, first served in each lane.

    Bounded in rows, which take memory, and in requests, which take time: bounded only by rows, small requests
    would queue for seconds and mostly time out.

    Small requests have a lane of their own and the first half of every batch, so they never wait for a large
    one to finish. A large request is split over as many batches as it needs, and goes to the end of its lane
    after each one while it still has a full batch to go. Requests of low priority have a third lane, which
    gets the space that the other two leave. While small requests arrive at any queue of the device, it gets
    only a share of the device's time, and batches with rows of other requests are cut to `mixed_rows`: a
    small one waits for the batch that runs when it comes, and for its own. So are batches of low priority
    alone.

    pace: how long a row takes; the batcher updates it after each batch.
    mixed_rows: the rows of such a batch. low_rows: those of low priority in it. low_seconds: what a batch of
        these takes.
    low_share: the device's; one of its own if None.
    small_rows: a small request has at most these.
    refused_since_batch: whether a request was rejected since the last batch was formed.
    """

    def __init__(
        self,
        max_batch_size: int,
        max_queue_rows: int,
        max_batch_delay_seconds: float = 0.0,
        max_queue_requests: int = sys.maxsize,
        low_share: LowShare | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_queue_rows = max_queue_rows
        self.max_batch_delay_seconds = max_batch_delay_seconds
        self.max_queue_requests = max_queue_requests
        self.pace = Pace(max_batch_size)
        self.mixed_rows = self.low_rows = max_batch_size
        self.low_seconds = 0.0
        self._retries = Retries()
        self._expired: list[Item] = []
        self.rows = 0
        self.requests = 0
        self.refused_since_batch = False
        self.next_deadline = math.inf
        self.small_rows = max(1, max_batch_size // SMALL_FRACTION)
        self._small = _Lane()
        self._large = _Lane()
        self._low = _Lane()
        self._low_share = low_share or LowShare()
        # How long rows of low priority take from one turn to the next, while more of them are queued. They
        # are counted when they are handed out, so none is in flight.
        self._low_pace = Pace(1)

    def check_admission(
        self, rows: int, seconds: float = math.inf, priority: Priority = "normal"
    ) -> Refusal | None:
        """Return the reason to reject `rows` more rows, or None. seconds: until their deadline."""
        if self.rows + rows > self.max_queue_rows:
            return self._no_room(
                f"{self.rows} rows are queued and {rows} more were sent, expected at most "
                f"{self.max_queue_rows} in the queue"
            )
        if self.requests >= self.max_queue_requests:
            return self._no_room(
                f"{self.requests} requests are queued, expected fewer than {self.max_queue_requests}"
            )
        return self._check_deadline(self.rows_ahead(rows, priority), rows, seconds, priority)

    def _check_deadline(self, ahead: int, rows: int, seconds: float, priority: Priority) -> Refusal | None:
        """Return the reason to reject rows that would be late behind `ahead` others, or None."""
        refusal = self.pace.check_deadline(ahead, rows, seconds)
        if refusal is None and priority == "low":
            refusal = self._low_pace.check_deadline(self._low.rows, rows, seconds)
            if refusal is not None:
                backlog = self._low.rows * self._low_pace.row_seconds
                refusal = refusal._replace(accepted_after=backlog - refusal.allowed_seconds)
        return refusal

    def _no_room(self, why: str) -> Refusal:
        return Refusal(why, allowed_seconds=self._backlog_seconds())

    def note_rejection(self, refusal: Refusal, rows: int, now: float) -> int:
        """Note that a request of `rows` rows is rejected; returns the seconds until it should return."""
        self.refused_since_batch = True
        if refusal.accepted_after is not None:
            return max(1, min(math.ceil(refusal.accepted_after), MAX_RETRY_SECONDS))
        work = rows * self.pace.mean_row_seconds
        return self._retries.promise(now, self._backlog_seconds(), work, refusal.allowed_seconds)

    def _backlog_seconds(self) -> float:
        return (self.rows + self.pace.rows_in_flight) * self.pace.mean_row_seconds

    def rows_ahead(self, rows: int, priority: Priority = "normal") -> int:
        """Return a lower bound on the queued rows that run before a new request of `rows` rows completes."""
        if priority == "low":
            return self.rows
        return self._small.rows if rows <= self.small_rows else self.rows - self._low.rows

    def push(self, item: Item, *, admitted: bool = False) -> None:
        """Add a request's rows.

        admitted: `check_admission` accepted it in this iteration of the event loop.
        Raises QueueFull, and keeps nothing, if `check_admission` gives a reason now; and DeadlineExceeded if
        the deadline has passed.
        """
        if item.deadline <= item.enqueued:
            late = item.enqueued - item.deadline
            raise DeadlineExceeded(
                f"the deadline passed {late:.3f} s before the request was read and decoded"
            )
        if not admitted:
            refusal = self.check_admission(item.rows, item.deadline - item.enqueued, item.priority)
            if refusal is not None:
                raise refusal.error(self.note_rejection(refusal, item.rows, item.enqueued))
        self._append(item, self._lane(item), 1)

    def push_group(self, group: Group, largest: int) -> bool:
        """Add the rows of a group's requests, or return False if they have to be pushed one by one.

        That is so if any of them might be rejected, or if they do not all belong into one lane.
        largest: the rows of its largest request.
        """
        requests = len(group.ends)
        seconds = group.deadline - group.enqueued
        if (
            seconds <= 0
            or self.rows + group.rows > self.max_queue_rows
            or self.requests + requests > self.max_queue_requests
            or (group.priority != "low" and largest > self.small_rows)
        ):
            return False
        ahead = self.rows if group.priority == "low" else self._small.rows
        if self._check_deadline(ahead, group.rows, seconds, group.priority) is not None:
            return False
        self._append(group, self._lane(group), requests)
        return True

    def _append(self, item: Item, lane: "_Lane", requests: int) -> None:
        self.rows += item.rows
        self.requests += requests
        if item.deadline < self.next_deadline:
            self.next_deadline = item.deadline
        if lane is self._small:
            self._low_share.last_small = item.enqueued
        lane.rows += item.rows
        lane.items.append(item)

    def split_up(self, group: Group) -> None:
        """Replace a queued group by its requests, but for those with rows in a batch."""
        if not group.dequeued:
            items = self._lane(group).items
            queued = list(items)
            at = queued.index(group)
            queued[at : at + 1] = self._apart(group)
            items.clear()
            items.extend(queued)

    def _apart(self, group: Group) -> list[Item]:
        """Return what takes a group's place in its lane."""
        items = group.apart()
        group.dequeued = group.taken == group.rows
        return items if group.dequeued else [group, *items]

    def remove(self, item: Item, now: float) -> None:
        """Drop the rows of an item that have not been handed out yet; `split_up` a group before."""
        if not item.dequeued:
            item.dequeued = True
            rows = item.rows - item.taken
            self.rows -= rows
            lane = self._lane(item)
            lane.rows -= rows
            lane.head()  # an empty lane keeps nothing of those that are removed
            self.requests -= 1
            if self.rows == self._low.rows:
                self.pace.note_none_waiting(now)
            if not self._low.rows:
                self._low_pace.note_none_waiting(now)

    def expire(self, now: float) -> list[Item]:
        """Remove and return the items whose deadline has passed."""
        expired = self._expired + self._overdue(now)
        self._expired = []
        return expired

    def _overdue(self, now: float) -> list[Item]:
        """Remove and return the queued items whose deadline has passed."""
        expired = []
        self.next_deadline = math.inf
        for lane in (self._small, self._large, self._low):
            queued: list[Item] = []
            for item in lane.items:
                if isinstance(item, Group) and item.deadline <= now and not item.dequeued:
                    queued += self._apart(item)
                elif not item.dequeued:
                    queued.append(item)
            for item in queued:
                if item.deadline <= now:
                    self.remove(item, now)
                    expired.append(item)
                else:
                    self.next_deadline = min(self.next_deadline, item.deadline)
            lane.items.clear()
            lane.items.extend(item for item in queued if not item.dequeued)
        return expired

    @property
    def low_row_seconds(self) -> float:
        """Seconds from one row of low priority to the next, while more of them are queued."""
        return self._low_pace.row_seconds

    def assume(self, small: int, large: int, low: int, requests: int, low_row_seconds: float) -> None:
        """Count these rows and requests as queued, though no item is: for `Mirror`, which takes none."""
        self._small.rows, self._large.rows, self._low.rows = small, large, low
        self.rows, self.requests = small + large + low, requests
        self._low_pace.assume(0, low_row_seconds, low_row_seconds)

    def lane_rows(self) -> tuple[int, int, int]:
        """Return the queued rows of the small, the large and the low lane."""
        return self._small.rows, self._large.rows, self._low.rows

    def holds_full_batch(self) -> bool:
        """Whether the next batch cannot grow. Rows of low priority may have to wait, if there are others."""
        others = self.rows - self._low.rows
        return (others or self.rows) >= self.max_batch_size

    def rows_due(self, now: float) -> int:
        """Return the queued rows without those of low priority that have to wait for their turn."""
        low = self._low.rows
        return self.rows - low if low and now < self._low_share.due() else self.rows

    def release_at(self, now: float) -> float:
        """Return when the queued rows are due: -inf for now, a time, or inf if none is queued."""
        rows = self.rows_due(now)
        if rows and (not self.max_batch_delay_seconds or rows >= self.max_batch_size):
            return -math.inf
        all_due = rows == self.rows
        low_due = math.inf if all_due else self._low_share.due()
        if not rows:
            return low_due
        lanes = (self._small, self._large, self._low) if all_due else (self._small, self._large)
        heads = [lane.head() for lane in lanes if lane.rows]
        return min(low_due, min(item.enqueued for item in heads if item) + self.max_batch_delay_seconds)

    def take(self, max_rows: int | None = None, now: float = -math.inf) -> Batch:
        """Hand out the next batch, of at most `max_rows` rows if given; empty if nothing is queued.

        Rows whose deadline has passed at `now` are not handed out; `expire` returns their items. Neither are
        rows of low priority before it is their turn.
        """
        if now >= self.next_deadline:
            self._expired += self._overdue(now)
        parts: list[Part] = []
        most = self.max_batch_size if max_rows is None else min(max_rows, self.max_batch_size)
        small, large, low = self._small, self._large, self._low
        low_due = low.rows > 0 and now >= self._low_share.due()
        small_arrive = (large.rows > 0 or low_due) and self._low_share.small_came_recently(now)
        if low.rows == self.rows or small_arrive:
            most = min(most, self.mixed_rows)
        space = most
        large_parts: list[Part] = []
        if large.rows:
            first = space - space // 2
            space -= first - self._fill(small, first, parts)
            space = self._fill(large, space, large_parts)
        if space and small.rows:
            space = self._fill(small, space, parts)
        parts += large_parts
        low_rows = 0
        if space and low_due:
            space_low = min(space, self.low_rows) if small_arrive else space
            low_rows = space_low - self._fill(low, space_low, parts)
            space -= low_rows
            self._low_share.note_low(now, self.low_seconds * low_rows / self.low_rows)
            self._low_pace.rows_in_flight += low_rows
            self._low_pace.note_batch(low_rows, now, now, low.rows)
        rows = most - space
        self.rows -= rows
        if not self.rows and self._retries.until > now:
            self._retries.note_empty(now)
        self.pace.rows_in_flight += rows
        self.refused_since_batch = False
        reason: Reason = "delay" if self.max_batch_delay_seconds else "idle"
        return Batch(parts, rows, reason if space else "full", low_rows)

    def note_low_ended(self, batch: Batch, began: float, seconds: float) -> None:
        """Note how long a batch with rows of low priority took, which decides when the next ones may run."""
        self._low_share.note_ended(began, seconds * batch.low_rows / batch.rows)

    def _fill(self, lane: "_Lane", space: int, parts: list[Part]) -> int:
        """Move rows from the lane into its parts of the batch; returns the remaining space."""
        before = space
        items = lane.items
        while space and items:
            item = items[0]
            if item.dequeued:
                items.popleft()
                continue
            start = item.taken
            stop = item.taken = min(item.rows, start + space)
            if start and parts and parts[-1].item is item:  # the first half of the batch has cut it
                parts[-1] = Part(item, parts[-1].start, stop)
            else:
                parts.append(Part(item, start, stop))
            space -= stop - start
            if isinstance(item, Group):
                self.requests -= item.ended_by(stop) - item.ended_by(start)
            elif stop == item.rows:
                self.requests -= 1
            if stop == item.rows:
                item.dequeued = True
                items.popleft()
            elif item.rows - stop >= self.max_batch_size:
                items.rotate(-1)
        lane.rows -= before - space
        return space

    def _lane(self, item: Item) -> "_Lane":
        if item.priority == "low":
            return self._low
        if isinstance(item, Group):
            return self._small
        return self._small if item.rows <= self.small_rows else self._large


class _Lane:
    """Items in their order; dequeued ones are dropped when they reach the head. rows: not handed out yet."""

    __slots__ = ("items", "rows")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.rows = 0

    def head(self) -> Item | None:
        """Return the first item that has rows to hand out, or None."""
        while self.items and self.items[0].dequeued:
            self.items.popleft()
        return self.items[0] if self.items else None
