"""The service's own rules that the simulation applies: its queue, batch sizes, batches on the loop, and load.

The only module in this folder that imports `service`, so that a change there has one place to adapt here.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from service.batching.batch_sizes import ON_LOOP_ROWS, OnLoopRows, on_loop_rows
from service.batching.items import Item
from service.batching.pace import DEADLINE_SHARE
from service.batching.queue import BatchQueue
from service.batching.request import InferenceResult
from service.errors import QueueFull
from service.observability.agent_check import AgentWeight
from service.observability.load import GAUGE_SECONDS, REPORT_SECONDS, Counts, Load, LoadMeter
from service.observability.load_reports import fields_of
from service.onnx.engine import bucket_sizes
from service.serving.tuning import BRIEF_SECONDS, BUCKETS_PER_OCTAVE, ON_LOOP_SECONDS, default_threads

__all__ = (
    "BRIEF_SECONDS",
    "DEADLINE_SHARE",
    "GAUGE_SECONDS",
    "ON_LOOP_ROWS",
    "ON_LOOP_SECONDS",
    "REPORT_SECONDS",
    "AgentWeight",
    "Batch",
    "Counts",
    "Load",
    "LoadMeter",
    "OnLoopRows",
    "Queue",
    "default_threads",
    "fields_of",
    "on_loop_rows",
    "padded_rows",
)

_EMPTY = InferenceResult(1, (), 0.0, 0.0, 0)
"""The result of every simulated request: only its time matters."""


def padded_rows(rows: int, max_batch_size: int) -> int:
    """The rows that the service computes for a batch on a CPU, padding included."""
    buckets = _buckets(max_batch_size)
    return buckets[bisect_left(buckets, rows)]


@cache
def _buckets(max_batch_size: int) -> tuple[int, ...]:
    return bucket_sizes(max_batch_size, BUCKETS_PER_OCTAVE["cpu"])


@dataclass(frozen=True)
class Batch:
    """Rows that run together; empty (0 rows) when nothing is queued.

    finished: one callback for each request whose last rows are in the batch.
    """

    rows: int
    finished: list[Callable[[], None]]


class Queue:
    """The service's BatchQueue, filled with requests that have no inputs. All times are simulated seconds."""

    def __init__(self, max_batch_size: int, max_queue_rows: int, max_queue_requests: int) -> None:
        self._queue = BatchQueue(max_batch_size, max_queue_rows, max_queue_requests=max_queue_requests)

    @property
    def rows(self) -> int:
        """Rows that are queued."""
        return self._queue.rows

    @property
    def refused_since_batch(self) -> bool:
        """Whether a request was rejected since the last batch was formed."""
        return self._queue.refused_since_batch

    def push(self, rows: int, now: float, deadline: float, finished: Callable[[], None]) -> bool:
        """Queue a request; False if the service rejects it. finished: returned with its last batch."""
        item = Item((), rows, now, deadline, lambda _: finished())
        try:
            self._queue.push(item)
        except QueueFull:
            return False
        return True

    def expire(self, now: float) -> int:
        """Remove the requests whose deadline has passed; return their number."""
        return len(self._queue.expire(now)) if self._queue.next_deadline <= now else 0

    def take(self, max_rows: int | None) -> Batch:
        """Remove the next batch, of at most `max_rows` rows if that is given."""
        batch = self._queue.take(max_rows)
        items = [part.item for part in batch.parts if part.stop == part.item.rows]
        return Batch(batch.rows, [partial(item.done, _EMPTY) for item in items])

    def note_batch(self, rows: int, started: float, ended: float) -> None:
        """Report a batch that ran, from which the queue learns its pace."""
        self._queue.pace.note_batch(rows, started, ended, self._queue.rows)
