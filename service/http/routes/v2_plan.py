"""How the fast path answers a POST /v2/models/{name}/infer with little JSON."""

import math
from dataclasses import dataclass

from service.batching.request import Done, InferenceRequest, InferenceResult, Priority
from service.batching.retries import Refusal
from service.content.body_jobs import InferenceJob
from service.content.codecs import row_bytes
from service.content.inference_bodies import LOW, InferenceBody
from service.errors import QueueFull, RequestError
from service.http.fast.endpoint import Body
from service.http.responses import Response
from service.http.routes.shared import Target, answered_by
from service.http.routes.v2_answer import answer
from service.models.catalogue import Catalogue
from service.models.manifest import Manifest
from service.observability.histograms import Tally
from service.serving.checks import check_inputs
from service.serving.predictor import Cancel, Predictor

WRITE_ON_LOOP_ELEMENTS = 16 * 1024
"""JSON of more elements is written on a thread."""


def elements(manifest: Manifest, rows: int) -> int:
    """Return the elements of all outputs for this many rows."""
    return rows * sum(math.prod(spec.shape[1:]) for spec in manifest.outputs)


@dataclass(slots=True)
class InferPlan:
    """The plan for requests with one head; see `service.http.fast.endpoint.Plan`.

    job: reads their bodies, of `body_bytes` each. timeout, priority: of those that do not say.
    """

    model: str
    predictor: Predictor
    catalogue: Catalogue
    target: Target
    job: InferenceJob
    body_bytes: int
    timeout: float
    priority: Priority
    decode_seconds: Tally
    encode_seconds: Tally

    def is_valid(self) -> bool:
        """Whether the served models have not changed since the plan was made."""
        return self.predictor.models() is self.catalogue

    def for_body(self, body: Body) -> "BoundPlan | None":
        """Return the plan for a body, or None if it is wrong or its response large: that is for ASGI."""
        manifest = self.target.manifest
        try:
            with self.decode_seconds.timing():
                asked = self.job.read(body)
            rows = check_inputs(manifest, asked.inputs, self.job.limits.max_request_rows)
        except RequestError:
            return None
        if elements(manifest, rows) > WRITE_ON_LOOP_ELEMENTS:
            return None
        timeout = min(self.timeout, asked.timeout * 1e-6) if asked.timeout else self.timeout
        return BoundPlan(self, asked, rows, timeout)

    def memory(self) -> None:
        """Any memory is as good for a body that begins with JSON."""

    def check_admission(self) -> Refusal | None:
        """Return the reason to reject the rows now, or None; see `Predictor.check_admission`."""
        version = self.target.version
        return self.predictor.check_admission(
            self.model, version, self._likely_rows(), self.timeout, self.priority
        )

    def reject(self, refusal: Refusal) -> QueueFull:
        """Note the rejection; returns the error that says when to return."""
        version, rows = self.target.version, self._likely_rows()
        return refusal.error(self.predictor.note_rejection(self.model, version, refusal, rows))

    def _likely_rows(self) -> int:
        """Return the rows that the bytes behind the JSON may hold, at least 1."""
        behind = 0 if self.job.json_bytes is None else self.body_bytes - self.job.json_bytes
        most = self.job.limits.max_request_rows
        return min(max(1, behind // sum(map(row_bytes, self.target.manifest.inputs))), most)


@dataclass(slots=True)
class BoundPlan:
    """The plan for a request whose body has come; see `service.http.fast.endpoint.BodyPlan`."""

    plan: InferPlan
    asked: InferenceBody
    rows: int
    timeout: float

    def submit(
        self, body: Body, traceparent: str | None, done: Done, received_at: float, *, admitted: bool
    ) -> Cancel:
        """Submit the body's rows; see `Predictor.submit`."""
        del body, admitted  # the rows, the deadline and the priority may differ from those that were admitted
        plan, asked = self.plan, self.asked
        priority = plan.priority if not asked.priority else "low" if asked.priority == LOW else "normal"
        request = InferenceRequest(
            plan.model,
            plan.target.version,
            asked.inputs,
            self.rows,
            received_at + self.timeout,
            priority,
            traceparent,
        )
        return plan.predictor.submit(request, done)

    def respond(self, result: InferenceResult) -> Response:
        """Return the response to the request."""
        plan = self.plan
        with plan.encode_seconds.timing():
            return answer(answered_by(plan.predictor, plan.target.manifest, result), self.asked, result)
