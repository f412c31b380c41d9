"""BentoML: its adaptive batching over one service; base64 in JSON, which is cheaper than an ndarray."""

import base64

import bentoml

from loadtests.peers.session import MAX_BATCH_SIZE, Classifier, rows_of


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024})
class Digits:
    def __init__(self) -> None:
        self._classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000)
    def classify(self, images: list[str]) -> list[list[float]]:
        rows = rows_of(b"".join(base64.b64decode(image) for image in images))
        probabilities: list[list[float]] = self._classifier(rows).tolist()
        return probabilities
