"""How the fast path answers a POST /classify with raw rows, and what every plan decides by the head.

Both are here, because a raw image should pass through few files.
"""

import numpy as np

from service.batching.request import Done, InferenceRequest, InferenceResult, Priority
from service.batching.retries import Refusal
from service.content import codecs
from service.content.picture_kinds import SIGNATURE_BYTES, sniff
from service.errors import QueueFull
from service.http.fast.endpoint import Body
from service.http.responses import Response
from service.http.routes.classify_options import ClassifyOptions
from service.http.routes.shared import SERVER_TIMING, Target, raw_headers
from service.http.types import OCTETS
from service.models.tensors import dtype_of
from service.serving.predictor import Cancel, Predictor

UNDECLARED = ("", "application/x-www-form-urlencoded")
"""No Content-Type, or what curl sends if none was given: the body's first bytes decide."""


class HeadPlan:
    """The part of `service.http.fast.endpoint.Plan` that the head decides alone.

    likely_rows: of a request, as its head tells.
    """

    def __init__(
        self, predictor: Predictor, target: Target, timeout: float, priority: Priority, likely_rows: int
    ) -> None:
        self.model = target.manifest.name
        self.timeout = timeout
        self._predictor = predictor
        self._catalogue = predictor.models()
        self._target = target
        self._priority = priority
        self._likely_rows = likely_rows

    def is_valid(self) -> bool:
        """Whether the served models have not changed since the plan was made."""
        return self._predictor.models() is self._catalogue

    def check_admission(self) -> Refusal | None:
        """Return the reason to reject the rows now, or None; see `Predictor.check_admission`."""
        return self._predictor.check_admission(
            self.model, self._target.version, self._likely_rows, self.timeout, self._priority
        )

    def reject(self, refusal: Refusal) -> QueueFull:
        """Note the rejection; returns the error that says when to return."""
        version = self._target.version
        return refusal.error(self._predictor.note_rejection(self.model, version, refusal, self._likely_rows))


class RawPlan(HeadPlan):
    """The plan for requests with a body of raw rows; see `service.http.fast.endpoint.Plan`."""

    def __init__(
        self, predictor: Predictor, max_rows: int, options: ClassifyOptions, kind: str, content_length: int
    ) -> None:
        self._any_body = kind not in UNDECLARED
        self._spec = options.target.manifest.inputs[0]
        self._dtype = dtype_of(self._spec)
        self._max_rows = max_rows
        self._body_bytes = content_length
        self._options = options
        rows, rest = divmod(content_length, codecs.row_bytes(self._spec))
        fits = not rest and 1 <= rows <= max_rows
        self._shape = (rows, *self._spec.shape[1:]) if fits else None
        # An undeclared body may be a picture, and a large one is rejected later: assume one row.
        likely_rows = rows if self._any_body and 1 <= rows <= max_rows else 1
        super().__init__(predictor, options.target, options.timeout, options.priority, likely_rows)

    def for_body(self, body: Body) -> "RawPlan | None":
        """Return this plan, unless the body is in one of the other formats."""
        return self if self._any_body or sniff(bytes(body[:SIGNATURE_BYTES])) is None else None

    def memory(self) -> memoryview | None:
        """Return memory for the body; see `Predictor.memory`."""
        return None if self._shape is None else self._predictor.memory(self._body_bytes)

    def submit(
        self, body: Body, traceparent: str | None, done: Done, received_at: float, *, admitted: bool
    ) -> Cancel:
        """Submit the body's rows; see `Predictor.submit`."""
        options = self._options
        deadline = received_at + options.timeout
        if self._shape is None:
            images = codecs.rows_from_raw(body, self._spec, self._max_rows)  # raises the right error
        else:
            images = np.ndarray(self._shape, self._dtype, body)
        request = InferenceRequest(
            self.model,
            options.target.version,
            {self._spec.name: images},
            len(images),
            deadline,
            options.priority,
            traceparent,
        )
        return self._predictor.submit(request, done, admitted=admitted)

    def respond(self, result: InferenceResult) -> Response:
        """Return the response to the request."""
        if self._options.accepted != OCTETS:
            return self._options.respond(self._predictor, result)
        # The same as `raw_response`, with a third of its calls.
        probabilities = result.outputs[0]
        headers = raw_headers(self.model, result.version, probabilities.shape)
        timing = SERVER_TIMING % (result.queue_seconds * 1e3, result.compute_seconds * 1e3, result.batch_rows)
        return Response(probabilities.tobytes(), OCTETS, 200, headers, timing, self.model)
