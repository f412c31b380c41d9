"""How the fast path answers a POST /v2/models/{name}/infer with little JSON."""

import math
from functools import partial

from service.batching.request import InferenceResult, Priority
from service.content.body_jobs import InferenceJob
from service.content.codecs import row_bytes
from service.content.inference_bodies import RepeatedRequest
from service.content.inference_requests import InferenceBody
from service.http.fast.endpoint import Body
from service.http.responses import Response
from service.http.routes.decoding_plan import DecodedPlan, DecodingPlan
from service.http.routes.shared import Target, answered_by
from service.http.routes.v2_shared import RepeatedAnswers, answer, scheduled
from service.models.manifest import Manifest
from service.observability.histograms import Tally
from service.serving.checks import check_inputs
from service.serving.predictor import Predictor

WRITE_ON_LOOP_ELEMENTS = 16 * 1024
"""JSON of more elements is written on a thread."""


def row_elements(manifest: Manifest) -> int:
    """Return the elements of all outputs for one row."""
    return sum(math.prod(spec.shape[1:]) for spec in manifest.outputs)


class InferPlan(DecodingPlan):
    """The plan for requests with one head; see `service.http.fast.endpoint.Plan`."""

    def __init__(
        self,
        predictor: Predictor,
        target: Target,
        timeout: float,
        priority: Priority,
        job: InferenceJob,
        body_bytes: int,
        decode_seconds: Tally,
        encode_seconds: Tally,
    ) -> None:
        """job: reads their bodies, of `body_bytes` each."""
        most, behind = job.limits.max_request_rows, body_bytes - (job.json_bytes or 0)
        row = sum(map(row_bytes, target.manifest.inputs))
        likely = 1 if job.json_bytes is None else min(max(1, behind // row), most)
        super().__init__(predictor, target, timeout, priority, likely, decode_seconds)
        self._job = job
        self._most_rows = WRITE_ON_LOOP_ELEMENTS // row_elements(target.manifest)
        self._encode_seconds = encode_seconds
        self._repeated: RepeatedRequest | None = None
        self._answers: RepeatedAnswers | None = None

    def _decode(self, body: Body) -> DecodedPlan | None:
        repeated, answers = self._repeated, self._answers
        if repeated is not None and repeated.is_in(body):
            asked, inputs = repeated.asked, repeated.inputs(body)
        else:
            asked, answers = self._job.read(body), None
            inputs = asked.inputs
            self._remember(body, asked)
        manifest = self._target.manifest
        rows = check_inputs(manifest, inputs, self._job.limits.max_request_rows)
        if rows > self._most_rows:
            return None
        timeout, priority = scheduled(asked, 0.0, self.timeout, self._priority)
        respond = partial(self._answer, asked, answers)
        return DecodedPlan(timeout, self._predictor, self._target, inputs, rows, priority, respond)

    def _remember(self, body: Body, asked: InferenceBody) -> None:
        """Remember a request for others with the same JSON; an id makes it another one each time."""
        repeated = None if asked.id else RepeatedRequest.of(body, self._job.json_bytes, asked)
        if repeated is not None:
            self._repeated, self._answers = repeated, RepeatedAnswers.of(repeated.asked)

    def _answer(
        self, asked: InferenceBody, answers: RepeatedAnswers | None, result: InferenceResult
    ) -> Response:
        with self._encode_seconds.timing():
            manifest = answered_by(self._predictor, self._target.manifest, result)
            return answer(manifest, asked, result) if answers is None else answers.answer(manifest, result)
