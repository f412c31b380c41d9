"""How the fast path answers requests whose small bodies the event loop decodes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.batching.request import Done, InferenceRequest, InferenceResult, Priority
from service.content.pictures import TooLargeForLoop
from service.http.fast.endpoint import Body, BodyPlan
from service.http.responses import Response
from service.http.routes.raw_plan import HeadPlan
from service.http.routes.shared import Target
from service.models.tensors import Array
from service.observability.histograms import Tally
from service.serving.predictor import Cancel, Predictor


class DecodingPlan(HeadPlan, ABC):
    """The plan for requests with one head; see `service.http.fast.endpoint.Plan`.

    decode_seconds: receives what decoding a body takes.
    """

    def __init__(
        self,
        predictor: Predictor,
        target: Target,
        timeout: float,
        priority: Priority,
        likely_rows: int,
        decode_seconds: Tally,
    ) -> None:
        super().__init__(predictor, target, timeout, priority, likely_rows)
        self._decode_seconds = decode_seconds

    @abstractmethod
    def _decode(self, body: Body) -> BodyPlan | None:
        """Return the plan for a body, None for the ASGI path. Raises RequestError, TooLargeForLoop."""

    def for_body(self, body: Body) -> BodyPlan | None:
        """Return the plan for a body, or None if the event loop should not answer it."""
        began = time.perf_counter()
        try:
            plan = self._decode(body)
        except TooLargeForLoop:
            return None
        except Exception as error:  # the request's edge
            plan = FailedPlan(self.timeout, error)
        if plan is not None:
            self._decode_seconds.add(time.perf_counter() - began)
        return plan

    def memory(self) -> None:
        """Return None: any memory is as good for a body that must be decoded."""
        return


@dataclass(slots=True)
class DecodedPlan:
    """The plan for a request whose body is decoded; see `service.http.fast.endpoint.BodyPlan`.

    inputs, rows, priority: as in `InferenceRequest`. answer: makes the response.
    """

    timeout: float
    predictor: Predictor
    target: Target
    inputs: Mapping[str, Array]
    rows: int
    priority: Priority
    answer: Callable[[InferenceResult], Response]

    def submit(
        self, body: Body, traceparent: str | None, done: Done, received_at: float, *, admitted: bool
    ) -> Cancel:
        """Submit the rows, which may be others than were admitted; see `Predictor.submit`."""
        del body, admitted
        request = InferenceRequest(
            self.target.manifest.name,
            self.target.version,
            self.inputs,
            self.rows,
            received_at + self.timeout,
            self.priority,
            traceparent,
        )
        return self.predictor.submit(request, done)

    def respond(self, result: InferenceResult) -> Response:
        """Return the response to the request."""
        return self.answer(result)


@dataclass(slots=True)
class FailedPlan:
    """The plan for a request whose body is wrong. error: says what is."""

    timeout: float
    error: Exception

    def submit(self, *_: object, **__: object) -> Cancel:
        """Raise the error."""
        raise self.error

    def respond(self, result: InferenceResult) -> Response:
        """Never called."""
        raise NotImplementedError(result)
