"""mosec: a Rust front end that batches, one Python worker, raw bodies in and out."""

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from loadtests.peers.session import Classifier, rows_of


class Digits(Worker):
    def __init__(self) -> None:
        super().__init__()
        self._classifier = Classifier()

    def deserialize(self, data: bytes) -> NDArray[np.uint8]:
        return rows_of(data)

    def forward(self, data: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        probabilities = self._classifier(np.concatenate(data))
        return np.split(probabilities, np.cumsum([len(images) for images in data])[:-1])

    def serialize(self, data: NDArray[np.float32]) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Digits, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
