"""What one pod was measured to cost per batch and per request, and the rates that follow."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loadtests.simulation.service_rules import (
    BRIEF_SECONDS,
    DEADLINE_SHARE,
    INLINE_SECONDS,
    InlineRows,
    inline_rows,
    padded_rows,
)


@dataclass(frozen=True)
class PodCosts:
    """What a pod was measured to take, and its limits.

    A batch of n rows, padded as the service pads it on a CPU, takes batch_seconds + n * row_seconds.
    turn_seconds: of the event loop, for each of its turns that answers requests, however many;
    request_seconds: for each of them; refuse_seconds: for one that is refused.
    overhead_seconds: what a caller sees on top (sockets, its own work).
    start_seconds: from starting the process to readiness. cores: that the pod has.
    inline_seconds: batches that take no longer run on the event loop; see `service.batching.on_loop`.
    deadline_seconds: what a request names as its deadline, after which its caller leaves.
    """

    batch_seconds: float
    row_seconds: float
    turn_seconds: float
    request_seconds: float
    refuse_seconds: float
    overhead_seconds: float
    start_seconds: float
    cores: int = 1
    inline_seconds: float = INLINE_SECONDS
    brief_seconds: float = BRIEF_SECONDS
    max_batch_size: int = 256
    max_queue_rows: int = 16384
    max_queue_requests: int = 512
    deadline_seconds: float = 30.0

    def device_seconds(self, rows: int) -> float:
        """One batch on the device."""
        return self.batch_seconds + padded_rows(rows, self.max_batch_size) * self.row_seconds

    def in_turns(self, rows: int) -> bool:
        """Whether the event loop stands still while such a batch runs.

        It does on the loop itself; and on a single core, which a device's thread would take from it.
        """
        return self.cores == 1 or rows <= self.inline_rows

    @cached_property
    def inline_rows(self) -> int:
        """The most rows of a batch that runs on the event loop, 0 if none does."""
        return self._inline.rows

    def most_inline(self, *, refusing: bool) -> int | None:
        """What the event loop cuts its batches to; None where it leaves longer ones to the thread.

        refusing: whether a request was refused since the last batch.
        """
        return self._inline.most(refusing=refusing)

    @cached_property
    def _inline(self) -> InlineRows:
        return inline_rows(self.device_seconds, self.max_batch_size, self.inline_seconds, self.brief_seconds)

    @cached_property
    def full_batch(self) -> int:
        """One-row requests in the largest batch that is formed."""
        most = self.most_inline(refusing=False) or self.max_batch_size
        return min(most, self.max_queue_rows, self.max_queue_requests)

    @cached_property
    def device_rate(self) -> float:
        """Rows per second of a device that runs one full batch after another."""
        return self.full_batch / self.device_seconds(self.full_batch)

    @cached_property
    def saturation_rate(self) -> float:
        """Most one-row requests per second, in full batches, which run in turns with HTTP or beside it.

        Each batch has a turn to itself, as where it takes longer than its requests.
        """
        loop_seconds = self.request_seconds + self.turn_seconds / self.full_batch
        if self.in_turns(self.full_batch):
            return 1 / (loop_seconds + 1 / self.device_rate)
        return min(self.device_rate, 1 / loop_seconds)

    @cached_property
    def most_waiting(self) -> float:
        """One-row requests that may wait: by the queue's two bounds, and so that the last is in time.

        What runs is done first, and then the request's own batch: each a whole one where so many wait.
        """
        most = self.deadline_seconds * DEADLINE_SHARE * self.device_rate
        in_time = max(min(most, self.max_batch_size) / 2, most - 2 * self.max_batch_size) + 1
        return min(self.max_queue_rows, self.max_queue_requests, in_time)


def load_costs(file: Path) -> PodCosts:
    """The costs that `loadtests.capacity measure` wrote."""
    return PodCosts(**json.loads(file.read_text())["costs"])
