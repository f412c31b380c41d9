"""The models folder: the one module that knows where models and versions lie in it.

<models folder>/<model>/<version>/{model.onnx,manifest.json,README.md}. The service, the export, the
evaluation, the quantisation and the load tests all look for versions here.
"""

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import RepositoryError
from service.models.catalogue import Failure, ModelInfo
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, MODEL_NAME, Manifest, read_manifest
from service.models.metadata import manifest_of_graph

CARD_FILE = "README.md"

Key = tuple[str, int]
"""A model's name and version."""

_VERSION = re.compile(r"[1-9][0-9]*")
_DIGITS = re.compile(r"[0-9]+")

_NO_MODELS = re.compile(r"[._@#~$].*|lost\+found", re.DOTALL)
"""Folders that tools, file systems and network storage keep next to the models."""


@dataclass(frozen=True)
class Scan:
    """One look at the models folder.

    versions: the version folders by model and version, ascending; models without any are left out.
    failures: the folders that could not be read, or are named wrongly.
    """

    versions: dict[str, dict[int, Path]]
    failures: tuple[Failure, ...] = ()

    def keys(self) -> set[Key]:
        """Return every version that lies in the folder."""
        return {(name, version) for name, folders in self.versions.items() for version in folders}


def model_folders(models_dir: Path) -> list[Path]:
    """Return the folders that may be models, by name, without those of tools and file systems.

    Raises RepositoryError if the models folder is missing or cannot be read.
    """
    try:
        if not models_dir.is_dir():
            raise RepositoryError(f"models folder {models_dir} is missing")
        return sorted(
            path for path in models_dir.iterdir() if not _NO_MODELS.fullmatch(path.name) and _is_folder(path)
        )
    except OSError as error:
        raise RepositoryError(f"models folder {models_dir} cannot be read: {_cause(error)}") from error


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


def scan(models_dir: Path) -> Scan:
    """Look at every model and version; what is wrong with one never hides another.

    Raises RepositoryError if the models folder itself is missing or cannot be read.
    """
    versions: dict[str, dict[int, Path]] = {}
    failures: list[Failure] = []
    for model in model_folders(models_dir):
        try:
            folders = version_folders(model)
            failures += _wrong_names(model, folders)
        except OSError as error:
            failures.append(Failure.of(model.name, None, f"{model} cannot be read: {_cause(error)}"))
            continue
        if folders and MODEL_NAME.match(model.name):
            versions[model.name] = folders
    return Scan(versions, tuple(failures))


def is_empty(folder: Path) -> bool:
    """Whether a version folder holds neither a manifest nor a graph, as when its upload has just begun."""
    try:
        return not any((folder / name).exists() for name in (MANIFEST_FILE, MODEL_FILE))
    except OSError:
        return False


def read_info(folder: Path) -> ModelInfo:
    """Read a version folder's manifest and model card; a graph without a manifest describes itself.

    Raises ManifestError.
    """
    return ModelInfo(_read_manifest(folder), _read_card(folder / CARD_FILE))


def is_bare(folder: Path) -> bool:
    """Whether a version folder has a graph and no manifest."""
    # A link that leads nowhere is a broken manifest, not an absent one.
    return not os.path.lexists(folder / MANIFEST_FILE) and os.path.isfile(folder / MODEL_FILE)  # noqa: PTH113


def _read_manifest(folder: Path) -> Manifest:
    return manifest_of_graph(folder) if is_bare(folder) else read_manifest(folder)


def _read_card(path: Path) -> str:
    """Return a model card in any usual encoding; empty if it cannot be read: a card never fails a model."""
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        return ""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _wrong_names(model: Path, folders: dict[int, Path]) -> Iterator[Failure]:
    if folders and not MODEL_NAME.match(model.name):
        seen = f"folder is named {model.name!r}, expected a model's name: {MODEL_NAME.pattern}"
        yield Failure.of(model.name, None, seen)
    for path in sorted(model.iterdir()):
        if _DIGITS.fullmatch(path.name) and not _VERSION.fullmatch(path.name) and path.is_dir():
            expected = max(1, int(path.name))
            yield Failure.of(model.name, None, f"{path} is not a version, expected {model.name}/{expected}")


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder; one that cannot be asked counts as one, to be reported later."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _is_version(path: Path) -> bool:
    return _VERSION.fullmatch(path.name) is not None and path.is_dir()


def _cause(error: OSError) -> str:
    return error.strerror or str(error)
