"""A small data set, and a classifier that was published from it."""

import shutil
from pathlib import Path

import pytest

from tests.support.idx_files import write_folder
from tests.support.tiny_published import publish_tiny
from training.datasets.splits import Splits, load


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> Splits:
    return load(data_dir)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, splits: Splits) -> Path:
    """A models folder with mlp/2, which no test may change."""
    models = tmp_path_factory.mktemp("models")
    publish_tiny(models, splits)
    return models


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "models"))
