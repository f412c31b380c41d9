"""What a queue holds until it has its outcome: the rows of one request, or of several that came together."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from service.batching.request import Array, Done, GroupDone, Priority


@dataclass(slots=True, eq=False)
class Item:
    """One request's rows, from submission to outcome.

    inputs: one array per graph input, each (rows, ...).
    done: receives the outcome, once.
    settled: the outcome was delivered or the request cancelled.
    taken: rows handed out in batches. dequeued: no row is left in the queue.
    traceparent: the W3C Trace Context of the request's span, if it is traced.
    """

    inputs: tuple[Array, ...]
    rows: int
    enqueued: float
    deadline: float
    done: Done
    priority: Priority = "normal"
    traceparent: str | None = None
    settled: bool = False
    taken: int = 0
    dequeued: bool = False
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    outputs: list[tuple[Array, ...]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Group(Item):
    """Small requests that came together, whose rows follow one another in the same arrays.

    It costs the queue, the batches and their delivery about as much as one request. What concerns a request
    on its own splits it into items, see `apart`. A request may be in more than one batch, like any other.

    ends: where each request's rows end. deadlines: of each request; `deadline` is the earliest.
    deliver: receives the outcome of the requests first..last, once for each; `done` is not used.
    traceparents: of each request, None if none is traced.
    first: the first request without an outcome. cancelled: of those in batches. apart_items: by request.
    """

    ends: list[int] = field(default_factory=list)
    deadlines: Sequence[float] = ()
    deliver: GroupDone = lambda *_: None
    traceparents: Sequence[str | None] | None = None
    first: int = 0
    cancelled: set[int] = field(default_factory=set)
    apart_items: dict[int, Item] = field(default_factory=dict)

    def start_of(self, request: int) -> int:
        """Return where a request's rows start."""
        return self.ends[request - 1] if request else 0

    def rows_of(self, requests: range) -> list[int]:
        """Return the rows of each of these requests."""
        if self.rows == len(self.ends):
            return [1] * len(requests)
        return [self.ends[request] - self.start_of(request) for request in requests]

    def begun_in(self, start: int, stop: int) -> range:
        """Return the requests whose first row is among the rows start..stop."""
        return range(self._begun_before(start), self._begun_before(stop))

    def held_in(self, start: int, stop: int) -> range:
        """Return the requests that have rows among start..stop."""
        return range(self.ended_by(start), self._begun_before(stop))

    def traced_in(self, start: int, stop: int) -> list[str]:
        """Return the traceparents of the traced requests that have rows among start..stop."""
        held = self.held_in(start, stop)
        return [each for each in (self.traceparents or ())[held.start : held.stop] if each is not None]

    def ended_by(self, row: int) -> int:
        """Return how many requests have all their rows before this one."""
        return bisect_right(self.ends, row)

    def _begun_before(self, row: int) -> int:
        return min(len(self.ends), bisect_left(self.ends, row) + 1) if row else 0

    def apart(self) -> list[Item]:
        """Take the requests of which no row is handed out from the end; returns an item for each."""
        kept = self._begun_before(self.taken)
        items = []
        for request in range(kept, len(self.ends)):
            start, end = self.start_of(request), self.ends[request]
            item = Item(
                tuple([array[start:end] for array in self.inputs]),
                end - start,
                self.enqueued,
                self.deadlines[request],
                partial(self.deliver, request, request + 1),
                self.priority,
                None if self.traceparents is None else self.traceparents[request],
            )
            self.apart_items[request] = item
            items.append(item)
        end = self.start_of(kept)
        # In this order: the device's thread hands over the whole arrays once it sees that the rows are all.
        self.inputs = tuple([array[:end] for array in self.inputs])
        self.rows = end
        del self.ends[kept:]
        self.deadline = math.inf  # the rest of a request that has begun runs in the next batch
        return items
