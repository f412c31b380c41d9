"""How long a row takes, and which request would be late. Knows nothing of lanes, threads or models."""

from service.batching.retries import Refusal

ROW_SECONDS_GAIN = 0.1
"""Weight of the latest batch in the moving average of seconds per row."""

MEAN_GAIN = 0.03
"""Weight of the latest batch in the mean: a pause of the process for 0.1 s made the moving average half as
long again, which clients were then told to wait."""

DEADLINE_SHARE = 0.8
"""A request is accepted only if its response is expected within this fraction of its remaining time. The
remainder covers what the queue cannot see: the time before the request was read, the time to deliver the
response, and a changing pace. Without it 17 % of the responses to 16-image requests were late at 1.2 times
the capacity, and 31 % at twice the capacity."""


class Pace:
    """Seconds per row, as an exponentially weighted moving average over finished batches.

    max_batch_size: rows in a full batch.
    rows_in_flight: rows of the batches that have begun and not ended.
    row_seconds: follows quickly, and decides what is accepted.
    """

    def __init__(self, max_batch_size: int) -> None:
        self.rows_in_flight = 0
        self.row_seconds = 0.0
        self._max_batch_size = max_batch_size
        self._mean_rows = 0.0
        self._mean_seconds = 0.0
        self._ended_with_more: float | None = None
        self._waited = 0.0

    def check_deadline(self, rows_queued: int, rows: int, seconds: float) -> Refusal | None:
        """Return the reason to reject a request that would be late, or None.

        rows_queued: queued rows that run before the request completes. rows: the request's own.
        seconds: until its deadline; one that has passed is left to the queue's own expiry.
        """
        ahead = self.rows_in_flight + rows_queued
        if not ahead:
            return None
        own = max(rows, self._max_batch_size) if ahead >= self._max_batch_size else rows
        wait = (ahead + own) * self.row_seconds
        longest = seconds * DEADLINE_SHARE
        if not 0 < longest < wait:
            return None
        return Refusal(
            f"a response would take {wait:.3f} s, expected at most {longest:.3f} s, "
            f"because the deadline is in {seconds:.3f} s",
            late=True,
            allowed_seconds=max(0.0, longest - own * self.row_seconds),
        )

    def assume(self, rows_in_flight: int, row_seconds: float, mean_row_seconds: float) -> None:
        """Take over another pace's figures."""
        self.rows_in_flight, self.row_seconds = rows_in_flight, row_seconds
        self._mean_rows, self._mean_seconds = 1.0, mean_row_seconds

    @property
    def mean_row_seconds(self) -> float:
        """Seconds per row over the last batches, weighted by their rows; 0 before the first."""
        return self._mean_seconds / self._mean_rows if self._mean_rows else 0.0

    def note_none_waiting(self, now: float) -> None:
        """Note that the last queued rows were removed: until the next ones come, the time does not count.

        The time until now does: under overload, requests expire because the event loop has so much to do.
        """
        if self._ended_with_more is not None and not self.rows_in_flight:
            self._waited += max(0.0, now - self._ended_with_more)
            self._ended_with_more = None

    def note_batch(self, rows: int, started: float, ended: float, rows_queued: int) -> None:
        """Learn from a finished batch how long a row takes.

        While rows are queued, all the time between two batch ends counts, including the event loop's work
        and other models' batches. rows_queued: rows in the queue when the batch ended.
        """
        self.rows_in_flight -= rows
        since = started if self._ended_with_more is None else self._ended_with_more
        seconds = self._waited + ended - since
        self._waited = 0.0
        self.row_seconds += ROW_SECONDS_GAIN * (seconds / rows - self.row_seconds)
        self._mean_rows += MEAN_GAIN * (rows - self._mean_rows)
        self._mean_seconds += MEAN_GAIN * (seconds - self._mean_seconds)
        self._ended_with_more = ended if rows_queued or self.rows_in_flight else None
