"""The cost of a batch on the engine: the fp32 MLP, by rows and by the number of requests."""

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from loadtests.peers.measure import images_of
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx.engine import Engine, bucket_sizes
from service.onnx.session import EngineOptions


@pytest.fixture(scope="module")
def engine(mlp: Path) -> Engine:
    options = EngineOptions(provider="cpu", device_id=0, intra_op_threads=1, buckets=bucket_sizes(256))
    engine = Engine(mlp / MODEL_FILE, read_manifest(mlp), options)
    engine.warm_up()
    return engine


@pytest.mark.parametrize("rows", [1, 8, 64, 256])
def test_one_request(benchmark: BenchmarkFixture, engine: Engine, rows: int) -> None:
    parts = [(images_of(rows),)]
    (probabilities,) = benchmark(engine.run, parts, rows)
    assert np.allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("requests", [8, 64, 256])
def test_requests_of_one_row(benchmark: BenchmarkFixture, engine: Engine, requests: int) -> None:
    parts = [(images_of(1),)] * requests
    (probabilities,) = benchmark(engine.run, parts, requests)
    assert np.allclose(probabilities, probabilities[0], atol=1e-4)
