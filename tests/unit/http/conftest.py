"""What several tests of HTTP need."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.observability.metrics import Metrics
from service.serving.local import Repository
from tests.support.http import settings


@pytest.fixture
async def repository(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[Repository]:
    add_classifier()
    add_classifier("another", 3, labels=tuple("abcdefghij"))
    (add_generator() / "README.md").write_text("# A card\n")
    repository = Repository(settings(tmp_path), Metrics())
    await repository.start()
    yield repository
    await repository.close()
