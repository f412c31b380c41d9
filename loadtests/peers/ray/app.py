"""Ray Serve: `serve.batch` in one replica, raw bodies in and out."""

import os
import signal

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from loadtests.peers.session import Classifier, rows_of


@serve.deployment(num_replicas=1, max_ongoing_requests=1024)
class Digits:
    def __init__(self) -> None:
        self._classifier = Classifier()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def classify(self, parts: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        probabilities = self._classifier(np.concatenate(parts))
        return np.split(probabilities, np.cumsum([len(images) for images in parts])[:-1])

    async def __call__(self, request: Request) -> Response:
        probabilities = await self.classify(rows_of(await request.body()))
        return Response(probabilities.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=4)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Digits.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
