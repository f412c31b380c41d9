"""What several tests of gRPC need."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings
from tests.support.rpc import Served, served


@pytest.fixture
async def predictor(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[LocalPredictor]:
    """Serves two classifiers and a generator."""
    add_classifier()
    add_classifier("another", 3, labels=tuple("abcdefghij"))
    add_generator()
    predictor = LocalPredictor(settings(tmp_path), Metrics())
    await predictor.start()
    yield predictor
    await predictor.close()


@pytest.fixture
async def rpc(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Served]:
    """The server over these models."""
    async with served(predictor, settings(tmp_path)) as running:
        yield running
