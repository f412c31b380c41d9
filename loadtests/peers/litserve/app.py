"""LitServe: base64 in JSON (it reads no raw bodies), its batching, one worker."""

import base64
import os
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from loadtests.peers.session import Classifier, rows_of


class Digits(litserve.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self._classifier = Classifier()

    def decode_request(self, request: dict[str, str]) -> NDArray[np.uint8]:
        return rows_of(base64.b64decode(request["images"]))

    def batch(self, inputs: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], list[int]]:
        return np.concatenate(inputs), [len(images) for images in inputs]

    def predict(self, x: Any) -> Any:
        images, counts = x
        return self._classifier(images), counts

    def unbatch(self, output: Any) -> list[NDArray[np.float32]]:
        probabilities, counts = output
        return np.split(probabilities, np.cumsum(counts)[:-1])

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Digits(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning"
    )
