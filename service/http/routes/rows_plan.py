"""How the fast path answers a POST /classify whose small body is JSON, a picture, a form or a .npy file."""

from functools import partial

from service.content.body_jobs import RowsJob
from service.http.fast.endpoint import Body
from service.http.routes.classify_options import ClassifyOptions
from service.http.routes.decoding_plan import DecodedPlan, DecodingPlan
from service.observability.histograms import Tally
from service.serving.predictor import Predictor


class RowsPlan(DecodingPlan):
    """The plan for requests with one head; see `service.http.fast.endpoint.Plan`."""

    def __init__(
        self, predictor: Predictor, options: ClassifyOptions, job: RowsJob, decode_seconds: Tally
    ) -> None:
        """job: decodes their bodies."""
        super().__init__(predictor, options.target, options.timeout, options.priority, 1, decode_seconds)
        self._options = options
        self._job = job

    def _decode(self, body: Body) -> DecodedPlan:
        images = self._job.run(bytes(body), on_loop=True)
        return DecodedPlan(
            self.timeout,
            self._predictor,
            self._target,
            {self._job.spec.name: images},
            len(images),
            self._priority,
            partial(self._options.respond, self._predictor),
        )
