"""A model version in an OCI registry, Debian's docker-registry: pushed, pulled and served."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from oras.client import OrasClient

from examples.registry import pull, push
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import infer
from service.settings import Settings
from tests.support.live import ROOT
from tests.support.registry import HAS_REGISTRY, registry_on_loopback
from tests.support.requests import request_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_REGISTRY and not os.environ.get("CI"),
        reason="docker-registry is missing: Debian's package docker-registry has it",
    ),
]

CNN = ROOT / "models" / "cnn" / "1"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(storage: Path) -> Iterator[str]:
    with registry_on_loopback(storage) as address:
        yield address


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_pulled_version_is_byte_identical_and_served(registry: str, tmp_path: Path) -> None:
    client, reference = OrasClient(insecure=True), f"{registry}/models/cnn:1"
    push(CNN, reference, client)
    pull(reference, tmp_path / "cnn" / "1", client)
    assert files(tmp_path / "cnn" / "1") == files(CNN)
    assert [path.name for path in (tmp_path / "cnn").iterdir()] == ["1"]
    predictor = LocalPredictor(Settings(models_dir=tmp_path), Metrics())
    await predictor.start()
    digits = np.fromfile(ROOT / "tests" / "digits" / "digits.raw", np.uint8).reshape(10, 28, 28)
    result = await infer(predictor, request_for("cnn", 1, {"images": digits}, time.monotonic() + 30))
    assert result.outputs[0].argmax(axis=1).tolist() == [*range(10)]
    await predictor.close()


def test_a_changed_file_is_not_pulled(registry: str, storage: Path, tmp_path: Path) -> None:
    version = tmp_path / "odd" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"the graph as it was pushed")
    client, reference = OrasClient(insecure=True), f"{registry}/models/odd:1"
    push(version, reference, client)
    for blob in storage.rglob("data"):
        if blob.is_file() and blob.read_bytes() == b"the graph as it was pushed":
            blob.write_bytes(b"the graph as it was chngd.")
    with pytest.raises(ValueError, match=r"model\.onnx has digest sha256:\w+, expected sha256:"):
        pull(reference, tmp_path / "pulled" / "1", client)
    assert list((tmp_path / "pulled").iterdir()) == []
