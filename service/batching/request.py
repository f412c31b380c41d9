"""A request to a model and its result: one pair of objects all the way from HTTP to the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


class RequestGroup(NamedTuple):
    """Requests for one model that came together. Their rows follow one another in the same arrays.

    version, inputs, priority: as in `InferenceRequest`; the inputs hold the rows of all requests.
    rows, deadlines: of each request. traceparents: of each, or None if none is traced.
    """

    model: str
    version: int | None
    inputs: Mapping[str, Array]
    rows: Sequence[int]
    deadlines: Sequence[float]
    priority: Priority = "normal"
    traceparents: Sequence[str | None] | None = None

    def requests(self) -> Iterator[InferenceRequest]:
        """Yield the requests on their own; their inputs are views."""
        start = 0
        traceparents = self.traceparents or [None] * len(self.rows)
        for rows, deadline, traceparent in zip(self.rows, self.deadlines, traceparents, strict=True):
            inputs = {name: array[start : start + rows] for name, array in self.inputs.items()}
            yield InferenceRequest(
                self.model, self.version, inputs, rows, deadline, self.priority, traceparent
            )
            start += rows


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

GroupDone = Callable[[int, int, Outcome], None]
"""Called with the outcome of the requests first..last of a group, on the event loop: once for each request. A
result holds the rows of all of them. A cancelled one may be among them; its rows are to be ignored."""
