"""What several tests of HTTP need."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from fastapi.dependencies import models as dependencies

from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings
from tests.support.models import add_encoder, add_gradient
from tests.support.text_models import add_captioner, add_search

CACHES = [each for each in vars(dependencies).values() if hasattr(each, "cache_clear")]


@pytest.fixture(autouse=True)
def forget_endpoints() -> Iterator[None]:
    """Clear FastAPI's caches, which keep 4,096 endpoints, and with each its application and models, alive.

    Garbage collection had to go through 900,000 objects of 316 applications.
    """
    yield
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def other_tasks(tmp_path: Path) -> None:
    """A model of each task that most tests do not need, for `predictor` to serve as well.

    To be named in `usefixtures`, whose fixtures are made before a test's own: each model takes 4 ms.
    """
    add_gradient(tmp_path)
    add_search(tmp_path)
    add_captioner(tmp_path)
    add_encoder(tmp_path)


@pytest.fixture
async def predictor(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[LocalPredictor]:
    """Serves two classifiers and a generator."""
    add_classifier()
    add_classifier("another", 3, labels=tuple("abcdefghij"))
    (add_generator() / "README.md").write_text("# A card\n")
    predictor = LocalPredictor(settings(tmp_path), Metrics())
    await predictor.start()
    yield predictor
    await predictor.close()
