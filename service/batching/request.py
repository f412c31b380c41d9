"""A request to a model and its result: one pair of objects all the way from HTTP to the device."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]

Priority = Literal["normal", "low"]
"""Rows of low priority run only in the space that normal rows leave in a batch."""


class InferenceRequest(NamedTuple):
    """Rows for one model.

    version: None for the latest when the request is submitted.
    inputs: every input of the model by name, each (rows, ...); must not change until the result is delivered.
    deadline: on the clock of `time.monotonic`, which on Linux all processes of a host share.
    traceparent: the W3C Trace Context of the request's span, if it is traced.
    """

    model: str
    version: int | None
    inputs: Mapping[str, Array]
    rows: int
    deadline: float
    priority: Priority = "normal"
    traceparent: str | None = None


class InferenceResult(NamedTuple):
    """A model version's outputs for a request's rows, and how long they took.

    outputs: in the order of the manifest's outputs, each (rows, ...), owned by the caller.
    queue_seconds: from submission until the request's first batch started.
    compute_seconds: summed over the batches that held its rows.
    batch_rows: rows in the last of these batches, other requests' included.
    """

    version: int
    outputs: tuple[Array, ...]
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


Outcome = InferenceResult | Exception

Done = Callable[[Outcome], None]
"""Called once with a request's outcome, on the event loop."""
