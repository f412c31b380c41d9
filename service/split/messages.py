"""The contents of the frames between HTTP workers, engine and supervisor.

Anything else that a peer sends raises FrameError. Nothing is ever unpickled.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Any, get_args

import numpy as np
from prometheus_client import Metric
from prometheus_client.samples import Exemplar
from pydantic import ValidationError

from service import errors
from service.batching.mirror import QueueState
from service.batching.request import InferenceResult, Priority, RequestGroup
from service.errors import EngineError, FrameError, InkserveError, QueueFull
from service.models.catalogue import Catalogue, Failure, ModelInfo
from service.models.manifest import Manifest, TensorSpec
from service.models.tensors import DTYPES, Array, dtype_of
from service.observability.histograms import NativeFamily, labels_key
from service.observability.load import Load
from service.split.frames import Frame

ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, InkserveError)
}
_DTYPES = {dtype.str: dtype for dtype in DTYPES.values()}


class Kind(IntEnum):
    """The kinds of frames. Most headers begin with the id of the call.

    INFER brings the small requests of one iteration of a worker's event loop, or one large request. It begins
    with a list of ids, and so does RESULTS: of the calls that a batch completed.
    METRICS asks the engine for its metrics, or the supervisor for the whole service's; a REPLY brings them.
    With the id 0 there is no REPLY: the supervisor asks a worker, which pushes its own in another METRICS.
    QUEUE tells a worker the state of a model's queue, with results and rejections while any rows are queued.
    LOAD tells a worker the load of the whole service.
    MEMORY comes with the descriptor of a worker's `OwnMemory`; the engine sends it back if it has mapped it.
    INFER_SHARED is an INFER whose body is in this memory: its header begins with the body's offset and bytes.
    RELEASE tells a worker that the engine has done with the body at an offset.
    """

    INFER = 1
    CANCEL = 2
    RELOAD = 3
    METRICS = 4
    PING = 5
    STATE = 6
    REPLY = 7
    ERROR = 8
    READY = 9
    LOAD = 10
    RESULTS = 11
    QUEUE = 12
    MEMORY = 13
    INFER_SHARED = 14
    RELEASE = 15


@dataclass(frozen=True)
class State:
    """The state that the engine sends every client when it connects, and whenever the state changes.

    instance: identifies one run of the engine.
    """

    instance: str
    ready: bool
    max_request_rows: int
    models: Catalogue

    def input_bytes(self) -> int:
        """Return the bytes of the largest request that a model accepts."""
        return self._largest(spec for info in self.models for spec in info.manifest.inputs)

    def output_bytes(self) -> int:
        """Return the bytes of the largest result that a model returns."""
        return self._largest(spec for info in self.models for spec in info.manifest.outputs)

    def _largest(self, specs: Iterable[TensorSpec]) -> int:
        """Return an upper bound, as if one model had all these tensors."""
        return self.max_request_rows * sum(
            math.prod(spec.shape[1:]) * dtype_of(spec).itemsize for spec in specs
        )


def group_header(numbers: Sequence[int], group: RequestGroup) -> list[object]:
    """Return the header of an INFER frame, whose body is the inputs in their order.

    numbers: the id of each request's call.
    """
    deadlines = [None if deadline == math.inf else deadline for deadline in group.deadlines]
    tensors = [(name, array.dtype.str, array.shape) for name, array in group.inputs.items()]
    rows = _rows_header(group.rows)
    header: list[object] = [numbers, group.model, group.version, rows, deadlines, tensors, group.priority]
    return header if group.traceparents is None else [*header, group.traceparents]


def read_group(frame: Frame) -> tuple[list[int], RequestGroup]:
    """Return an INFER frame's call ids and requests, whose arrays are read-only views of the frame."""
    with _reading("request"):
        numbers, model, version, rows, deadlines, tensors, priority, *traceparents = frame.header
        views = _views([(dtype, shape) for _, dtype, shape in tensors], frame.body)
        inputs = dict(zip([name for name, _, _ in tensors], views, strict=True))
        _check_numbers(numbers)
        rows = _read_rows(rows, len(numbers))
        deadlines = [math.inf if deadline is None else float(deadline) for deadline in deadlines]
        if priority not in get_args(Priority):
            raise ValueError(f"priority is {priority!r}")
        if any(len(each) != len(numbers) for each in (rows, deadlines, *traceparents)) or not numbers:
            raise ValueError(f"{len(numbers)} ids have {len(rows)} and {len(deadlines)} of the rest")
        if not {type(each) for sent in traceparents for each in sent} <= {str, type(None)}:
            raise TypeError(f"trace contexts are {traceparents!r:.80}")
        if any(len(view) != sum(rows) for view in views):
            raise ValueError(f"the requests have {sum(rows)} rows, their tensors another number")
        return numbers, RequestGroup(model, version, inputs, rows, deadlines, priority, *traceparents)


def read_shared(frame: Frame) -> tuple[int, int, list[Any]]:
    """Return the offset and the bytes of an INFER_SHARED frame's body, and the header of the INFER."""
    with _reading("request"):
        offset, size, *header = frame.header
        _check_numbers([offset, size])
        return offset, size, header


def read_number(frame: Frame) -> int:
    """Return the only number in a MEMORY or RELEASE frame."""
    with _reading("number"):
        _check_numbers(frame.header)
        (number,) = frame.header
        return int(number)


def results_header(numbers: Sequence[int], rows: Sequence[int], result: InferenceResult) -> list[object]:
    """Return the header of a RESULTS frame, whose body is the outputs in their order.

    numbers, rows: the id of each request's call, and the rows of the outputs that are its own.
    """
    tensors = [(array.dtype.str, array.shape) for array in result.outputs]
    version, _, queue_seconds, compute_seconds, batch_rows = result
    return [numbers, version, _rows_header(rows), queue_seconds, compute_seconds, batch_rows, tensors]


def queue_header(model: str, version: int | None, state: QueueState | None) -> list[object]:
    """Return the header of a QUEUE frame. version: as the requests name it."""
    return [model, version, None if state is None else list(state)]


def read_queue(frame: Frame) -> tuple[str, int | None, QueueState | None]:
    """Return the model, the version and the state of its queue in a QUEUE frame."""
    with _reading("queue"):
        model, version, state = frame.header
        return model, version, None if state is None else QueueState(*state)


def read_results(frame: Frame) -> Iterator[tuple[int, InferenceResult]]:
    """Yield the call id and the result of each request; the arrays are read-only views of the frame."""
    with _reading("result"):
        numbers, version, rows, queue_seconds, compute_seconds, batch_rows, tensors = frame.header
        outputs = _views(tensors, frame.body)
        _check_numbers(numbers)
        rows = _read_rows(rows, len(numbers))
        if len(rows) != len(numbers) or any(len(output) != sum(rows) for output in outputs):
            raise ValueError(f"{len(numbers)} ids have {len(rows)} of rows, {sum(rows)} in all")
    start = 0
    for number, count in zip(numbers, rows, strict=True):
        stop = start + count
        arrays = tuple([output[start:stop] for output in outputs])
        yield number, InferenceResult(version, arrays, queue_seconds, compute_seconds, batch_rows)
        start = stop


def _rows_header(rows: Sequence[int]) -> Sequence[int] | None:
    """Return the rows of each request; None if each has one, as nearly all have."""
    return None if sum(rows) == len(rows) and min(rows) == 1 else rows


def _read_rows(rows: Sequence[int] | None, requests: int) -> Sequence[int]:
    if rows is None:
        return [1] * requests
    _check_numbers(rows)
    return rows


def _check_numbers(sent: object) -> None:
    """Raise TypeError unless it is a list of whole numbers, ValueError if one is negative."""
    if not isinstance(sent, list) or not {type(each) for each in sent} <= {int}:
        raise TypeError(f"expected a list of whole numbers, not {sent!r:.80}")
    if min(sent, default=0) < 0:
        raise ValueError(f"expected numbers from 0, not {min(sent)}")


def error_header(number: int, error: Exception) -> list[object]:
    """Return the header of an ERROR frame; details of unexpected exceptions are not sent."""
    if isinstance(error, QueueFull):
        return [number, type(error).__name__, str(error), error.retry_seconds]
    if isinstance(error, InkserveError):
        return [number, type(error).__name__, str(error), None]
    return [number, EngineError.__name__, "internal error", None]


def read_error(frame: Frame) -> InkserveError:
    """Return the error in an ERROR frame, of its original class; an unknown class becomes EngineError."""
    with _reading("error"):
        _, name, message, retry_seconds = frame.header
        kind = ERRORS.get(name, EngineError)
        if issubclass(kind, QueueFull):
            return kind(message, float(retry_seconds))
        return kind(message)


def state_header(state: State) -> list[object]:
    """Return the header of a STATE frame."""
    models = [
        [
            info.manifest.model_dump_json(),
            info.card,
            info.batch_sizes,
            info.slow_batch_sizes,
            info.differing_batch_sizes,
        ]
        for info in state.models
    ]
    failures = [[failure.name, failure.version, failure.reason] for failure in state.models.failures]
    return [state.instance, state.ready, state.max_request_rows, models, failures]


def read_state(frame: Frame) -> State:
    """Return the state in a STATE frame."""
    with _reading("state"):
        instance, ready, max_request_rows, models, failures = frame.header
        infos = [
            ModelInfo(Manifest.model_validate_json(text), card, *map(tuple, sizes))
            for text, card, *sizes in models
        ]
        return State(
            instance,
            bool(ready),
            int(max_request_rows),
            Catalogue(infos, [Failure(*each) for each in failures]),
        )


def load_header(load: Load) -> list[float]:
    """Return the header of a LOAD frame."""
    return list(load)


def read_load(frame: Frame) -> Load:
    """Return the load in a LOAD frame."""
    with _reading("load"):
        return Load(*map(float, frame.header))


def read_id(frame: Frame) -> int:
    """Return the call id at the start of a frame's header."""
    with _reading("id"):
        number: int = frame.header[0]
        return number


def read_lines(frame: Frame) -> list[str]:
    """Return the lines in the REPLY to a RELOAD."""
    with _reading("reply"):
        return [str(line) for line in frame.header[1]]


def metrics_header(number: int, source: str, families: Sequence[Metric]) -> list[object]:
    """Return the header of a METRICS frame that pushes, or of the REPLY to one that asks.

    source: the run of the process that counted; see `Totals.update`.
    """
    return [
        number,
        source,
        [
            [
                family.name,
                family.documentation,
                family.type,
                [
                    [each.name, each.labels, each.value, *([list(each.exemplar)] if each.exemplar else [])]
                    for each in family.samples
                ],
                *_native_header(family),
            ]
            for family in families
        ],
    ]


def read_metrics(frame: Frame) -> tuple[str, list[Metric]]:
    """Return the source and the metrics in such a frame."""
    with _reading("metrics"):
        _, source, described = frame.header
        families = []
        for name, documentation, kind, samples, *native in described:
            family = (
                _native_family(name, documentation, *native) if native else Metric(name, documentation, kind)
            )
            for sample_name, labels, value, *exemplars in samples:
                exemplar = _exemplar(*exemplars) if exemplars else None
                family.add_sample(sample_name, labels, float(value), exemplar=exemplar)
            families.append(family)
        return source, families


def _native_header(family: Metric) -> list[object]:
    """Return the exponential buckets of a histogram that has them, as one element."""
    if not isinstance(family, NativeFamily):
        return []
    return [[[dict(key), list(native.items())] for key, native in family.native.items()]]


def _native_family(name: str, documentation: str, sent: Sequence[Any]) -> NativeFamily:
    family = NativeFamily(name, documentation)
    for labels, buckets in sent:
        native = {int(index): int(count) for index, count in buckets}
        family.native[labels_key({str(label): str(value) for label, value in labels.items()})] = native
    return family


def _exemplar(sent: Sequence[Any]) -> Exemplar:
    labels, value, timestamp = sent
    return Exemplar({str(name): str(each) for name, each in labels.items()}, float(value), float(timestamp))


def _views(tensors: Iterable[tuple[str, Sequence[int]]], body: memoryview) -> list[Array]:
    """Return arrays of these dtypes and shapes, which follow one another in the body."""
    arrays, offset = [], 0
    for dtype, shape in tensors:
        array: Array = np.ndarray(shape, _DTYPES[dtype], body, offset)
        arrays.append(array)
        offset += array.nbytes
    if offset != len(body):
        raise ValueError(f"body has {len(body)} bytes, its tensors need {offset}")
    return arrays


class _reading:  # noqa: N801, used like a function; @contextmanager would cost three times as much
    """Turns the errors that a malformed frame causes into FrameError."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (ValueError, TypeError, LookupError, ValidationError)):
            raise FrameError(f"{self._what} cannot be read: {error!r}") from error
