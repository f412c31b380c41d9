"""A queue in another process, as it was when it was last heard of: what it would refuse now."""

from typing import NamedTuple

from service.batching.queue import BatchQueue
from service.batching.request import Priority
from service.batching.retries import Refusal


class QueueState(NamedTuple):
    """What a queue decides by whether it accepts a request.

    small, large, low: the rows in each lane. The first three are its bounds; see `BatchQueue` and `Pace`.
    """

    max_batch_size: int
    max_queue_rows: int
    max_queue_requests: int
    small: int
    large: int
    low: int
    requests: int
    rows_in_flight: int
    row_seconds: float
    mean_row_seconds: float
    low_row_seconds: float

    @classmethod
    def of(cls, queue: BatchQueue) -> "QueueState":
        """Return the state of a queue in this process."""
        pace = queue.pace
        return cls(
            queue.max_batch_size,
            queue.max_queue_rows,
            queue.max_queue_requests,
            *queue.lane_rows(),
            queue.requests,
            pace.rows_in_flight,
            pace.row_seconds,
            pace.mean_row_seconds,
            queue.low_row_seconds,
        )


class Mirror:
    """Refuses what a queue in another process would refuse, by its last state.

    Since then the queue is taken to have gone on at its pace, and to have received what was sent from here.
    So it refuses too little rather than too much: what others send is not known, and a queue that is not
    heard of any more is soon taken to be empty.
    sharers: how many processes send to the queue. Each promises its clients times to return in only its share
        of the queue's time.
    """

    def __init__(self, state: QueueState, now: float, sharers: int) -> None:
        self._sharers = sharers
        self._queue = BatchQueue(
            state.max_batch_size, state.max_queue_rows, max_queue_requests=state.max_queue_requests
        )
        self.update(state, now)

    def update(self, state: QueueState, now: float) -> None:
        """Take over a new state, of the time `now` on the clock of `time.monotonic`."""
        self._state, self._seen = state, now
        self._sent_small = self._sent_large = self._sent_low = self._sent_requests = 0

    def note_sent(self, rows: int, priority: Priority) -> None:
        """Note that a request was sent to the queue."""
        self._sent_requests += 1
        if priority == "low":
            self._sent_low += rows
        elif rows <= self._queue.small_rows:
            self._sent_small += rows
        else:
            self._sent_large += rows

    def check_admission(self, rows: int, seconds: float, priority: Priority, now: float) -> Refusal | None:
        """Return the reason why the queue would reject this many rows now, or None."""
        self._go_on(now)
        return self._queue.check_admission(rows, seconds, priority)

    def note_rejection(self, refusal: Refusal, rows: int, now: float) -> int:
        """Note that a request was rejected here; returns the seconds until it should return."""
        return self._queue.note_rejection(refusal, rows * self._sharers, now)

    def _go_on(self, now: float) -> None:
        """Bring the queue to what is expected at this time."""
        state = self._state
        small, large = state.small + self._sent_small, state.large + self._sent_large
        low = state.low + self._sent_low
        rows = small + large + low + state.rows_in_flight
        done = (now - self._seen) / state.row_seconds if state.row_seconds else 0.0
        share = max(0.0, 1.0 - done / rows) if rows else 0.0
        self._queue.assume(
            int(small * share),
            int(large * share),
            int(low * share),
            int((state.requests + self._sent_requests) * share),
            state.low_row_seconds,
        )
        self._queue.pace.assume(int(state.rows_in_flight * share), state.row_seconds, state.mean_row_seconds)
