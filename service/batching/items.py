"""What a queue holds: the rows of one request, from submission to outcome."""

from dataclasses import dataclass, field

from service.batching.request import Array, Done, Priority


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
