"""What one pod was measured to cost per batch and per request, and the rates that follow."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loadtests.simulation.service_rules import (
    BRIEF_SECONDS,
    DEADLINE_SHARE,
    ON_LOOP_SECONDS,
    OnLoopRows,
    on_loop_rows,
    padded_rows,
)


@dataclass(frozen=True)
class PodCosts:
    """A pod's measured costs, and its limits.

    A batch of n rows, padded as the service pads it on a CPU, takes batch_seconds + n * row_seconds.
    turn_seconds: event loop time per iteration that sends responses, however many;
    request_seconds: event loop time per answered request; refuse_seconds: per rejected request.
    overhead_seconds: latency that a caller sees in addition (sockets, its own work).
    start_seconds: from starting the process to readiness. cores: of the pod.
    on_loop_seconds: batches that take at most this long run on the event loop; see
        `service.batching.batch_sizes`.
    deadline_seconds: the deadline of each request, after which its caller disconnects.
    """

    batch_seconds: float
    row_seconds: float
    turn_seconds: float
    request_seconds: float
    refuse_seconds: float
    overhead_seconds: float
    start_seconds: float
    cores: int = 1
    on_loop_seconds: float = ON_LOOP_SECONDS
    brief_seconds: float = BRIEF_SECONDS
    max_batch_size: int = 256
    max_queue_rows: int = 16384
    max_queue_requests: int = 512
    deadline_seconds: float = 30.0

    def device_seconds(self, rows: int) -> float:
        """Seconds of one batch on the device."""
        return self.batch_seconds + padded_rows(rows, self.max_batch_size) * self.row_seconds

    def blocks_loop(self, rows: int) -> bool:
        """Whether the event loop waits while a batch of this many rows runs.

        It waits for an inline batch, and on a single core for every batch, because the device thread takes
        the core.
        """
        return self.cores == 1 or rows <= self.on_loop_rows

    @cached_property
    def on_loop_rows(self) -> int:
        """Maximum rows of a batch that runs inline, 0 if none does."""
        return self._on_loop.rows

    def max_on_loop_rows(self, *, refusing: bool) -> int | None:
        """The rows that the event loop cuts its batches to; None if longer batches run on the device thread.

        refusing: whether a request was rejected since the last batch.
        """
        return self._on_loop.most(rejecting=refusing)

    @cached_property
    def _on_loop(self) -> OnLoopRows:
        return on_loop_rows(
            self.device_seconds, self.max_batch_size, self.on_loop_seconds, self.brief_seconds
        )

    @cached_property
    def full_batch(self) -> int:
        """One-row requests in the largest batch that is formed."""
        most = self.max_on_loop_rows(refusing=False) or self.max_batch_size
        return min(most, self.max_queue_rows, self.max_queue_requests)

    @cached_property
    def device_rate(self) -> float:
        """Rows per second of a device that runs full batches without a pause."""
        return self.full_batch / self.device_seconds(self.full_batch)

    def work_share(self, rows: int) -> float:
        """The fraction of a batch's time that the service counts as work; see `service.batching.work`."""
        return min(1.0, rows / self.device_rate / self.device_seconds(rows))

    @cached_property
    def saturation_rate(self) -> float:
        """Maximum one-row requests per second, in full batches, inline or in parallel to HTTP.

        Each iteration of the loop has one batch, as when a batch takes longer than its requests.
        """
        loop_seconds = self.request_seconds + self.turn_seconds / self.full_batch
        if self.blocks_loop(self.full_batch):
            return 1 / (loop_seconds + 1 / self.device_rate)
        return min(self.device_rate, 1 / loop_seconds)

    @cached_property
    def max_queued(self) -> float:
        """Maximum one-row requests queued: by the queue's two bounds, and by the deadline of the last.

        The batch in flight ends first, and then the request's own batch: both are full with this many queued.
        """
        most = self.deadline_seconds * DEADLINE_SHARE * self.device_rate
        in_time = max(min(most, self.max_batch_size) / 2, most - 2 * self.max_batch_size) + 1
        return min(self.max_queue_rows, self.max_queue_requests, in_time)


def load_costs(file: Path) -> PodCosts:
    """Read the costs that `loadtests.capacity measure` wrote."""
    return PodCosts(**json.loads(file.read_text())["costs"])
