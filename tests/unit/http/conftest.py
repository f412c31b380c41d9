"""What several tests of HTTP need."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings


@pytest.fixture
async def predictor(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[LocalPredictor]:
    add_classifier()
    add_classifier("another", 3, labels=tuple("abcdefghij"))
    (add_generator() / "README.md").write_text("# A card\n")
    predictor = LocalPredictor(settings(tmp_path), Metrics())
    await predictor.start()
    yield predictor
    await predictor.close()
