"""The bound of the engine: onnxruntime alone, without a server. `python -m loadtests.peers.engine`."""

import json
import sys
import time

import numpy as np

from loadtests.peers.session import SIDE, Classifier

BATCH_SIZES = (1, 8, 64, 256)


def measure(classifier: Classifier, rows: int, seconds: float) -> dict[str, float]:
    """Run one batch size repeatedly in this thread, for this many seconds."""
    images = np.random.default_rng(0).integers(0, 256, (rows, SIDE, SIDE), np.uint8)
    latencies: list[float] = []
    cpu_started, started = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) - started < seconds:
        classifier(images)
        latencies.append(time.perf_counter() - now)
    count = rows * len(latencies)
    return {
        "images_per_second": count / (time.perf_counter() - started),
        "p50_seconds": float(np.median(latencies)),
        "cpu_seconds_per_image": (time.process_time() - cpu_started) / count,
    }


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    classifier = Classifier()
    print(json.dumps({str(rows): measure(classifier, rows, seconds) for rows in BATCH_SIZES}))
