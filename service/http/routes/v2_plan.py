"""How the fast path answers a POST /v2/models/{name}/infer with little JSON."""

import math
from functools import partial

from service.batching.request import InferenceResult, Priority
from service.content.body_jobs import InferenceJob
from service.content.codecs import row_bytes
from service.content.inference_requests import InferenceBody
from service.http.fast.endpoint import Body
from service.http.responses import Response
from service.http.routes.decoding_plan import DecodedPlan, DecodingPlan
from service.http.routes.shared import Target, answered_by
from service.http.routes.v2_shared import answer, scheduled
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

    def _decode(self, body: Body) -> DecodedPlan | None:
        manifest = self._target.manifest
        asked = self._job.read(body)
        rows = check_inputs(manifest, asked.inputs, self._job.limits.max_request_rows)
        if rows > self._most_rows:
            return None
        timeout, priority = scheduled(asked, 0.0, self.timeout, self._priority)
        return DecodedPlan(
            timeout,
            self._predictor,
            self._target,
            asked.inputs,
            rows,
            priority,
            partial(self._answer, asked),
        )

    def _answer(self, asked: InferenceBody, result: InferenceResult) -> Response:
        with self._encode_seconds.timing():
            return answer(answered_by(self._predictor, self._target.manifest, result), asked, result)
