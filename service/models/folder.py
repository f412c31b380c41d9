"""The models folder: the one module that knows where models and versions lie in it.

<models folder>/<model>/<version>/{model.onnx,manifest.json,README.md}. The service, the export, the
evaluation, the quantisation and the load tests all look for versions here.
"""

import re
from pathlib import Path

from service.errors import RepositoryError
from service.models.catalogue import ModelInfo
from service.models.manifest import read_manifest

CARD_FILE = "README.md"

Key = tuple[str, int]
"""A model's name and version."""

_VERSION = re.compile(r"[1-9][0-9]*")


def model_folders(models_dir: Path) -> list[Path]:
    """Return the folders of all models, by name; names that start with "." or "_" are not models.

    Raises RepositoryError if the models folder is missing.
    """
    if not models_dir.is_dir():
        raise RepositoryError(f"models folder {models_dir} is missing")
    return sorted(path for path in models_dir.iterdir() if path.is_dir() and path.name[0] not in "._")


def version_folders(model: Path, holding: str | None = None) -> dict[int, Path]:
    """Return a model's version folders by version, ascending; empty if there are none.

    A version folder is named by a positive decimal number without leading zeros.
    holding: leave out the folders that do not hold a file of this name.
    """
    if not model.is_dir():
        return {}
    folders = {int(path.name): path for path in model.iterdir() if _is_version(path)}
    return {
        version: folders[version]
        for version in sorted(folders)
        if holding is None or (folders[version] / holding).is_file()
    }


def latest_version(model: Path, holding: str | None = None) -> Path:
    """Return the folder of a model's highest version. Raises RepositoryError if it has none."""
    versions = version_folders(model, holding)
    if not versions:
        expected = f"{model.name}/1/{holding}" if holding else f"{model.name}/1"
        raise RepositoryError(f"{model} holds no version folder, expected {expected} or the like")
    return versions[max(versions)]


def find_versions(models_dir: Path, which: str) -> dict[Key, Path]:
    """Return the version folders to serve: each model's latest, or all if `which` is "all".

    Raises RepositoryError if the models folder is missing or a model has no version folder.
    """
    found: dict[Key, Path] = {}
    for model in model_folders(models_dir):
        latest = latest_version(model)
        folders = version_folders(model) if which == "all" else {int(latest.name): latest}
        found |= {(model.name, version): folder for version, folder in folders.items()}
    return found


def read_info(folder: Path) -> ModelInfo:
    """Read a version folder's manifest and model card. Raises ManifestError."""
    card = folder / CARD_FILE
    return ModelInfo(read_manifest(folder), card.read_text() if card.is_file() else "")


def _is_version(path: Path) -> bool:
    return _VERSION.fullmatch(path.name) is not None and path.is_dir()
