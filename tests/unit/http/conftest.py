"""What several tests of HTTP need."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings
from tests.support.models import add_encoder, add_gradient
from tests.support.text_models import add_captioner, add_search


@pytest.fixture
async def predictor(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[LocalPredictor]:
    add_classifier()
    add_classifier("another", 3, labels=tuple("abcdefghij"))
    (add_generator() / "README.md").write_text("# A card\n")
    add_gradient(tmp_path)
    add_search(tmp_path)
    add_captioner(tmp_path)
    add_encoder(tmp_path)
    predictor = LocalPredictor(settings(tmp_path), Metrics())
    await predictor.start()
    yield predictor
    await predictor.close()
