"""The models folder: which versions it holds, and what each says of itself."""

from pathlib import Path

from service.errors import RepositoryError
from service.models.catalogue import ModelInfo
from service.models.manifest import read_manifest

CARD_FILE = "README.md"

Key = tuple[str, int]


def find_versions(models_dir: Path, which: str) -> dict[Key, Path]:
    """The version folders to serve: of each model the latest, or all.

    Names that start with "." or "_" are not models. Raises RepositoryError if the folder is missing
    or a model has no version folder.
    """
    if not models_dir.is_dir():
        raise RepositoryError(f"models folder {models_dir} is missing")
    found: dict[Key, Path] = {}
    for model in sorted(path for path in models_dir.iterdir() if path.is_dir() and path.name[0] not in "._"):
        versions = sorted(int(p.name) for p in model.iterdir() if p.is_dir() and p.name.isdecimal())
        if not versions:
            raise RepositoryError(f"{model} holds no version folder, expected {model.name}/1 or the like")
        for version in versions if which == "all" else versions[-1:]:
            found[model.name, version] = model / str(version)
    return found


def read_info(folder: Path) -> ModelInfo:
    """A version folder's manifest and model card. Raises ManifestError."""
    card = folder / CARD_FILE
    return ModelInfo(read_manifest(folder), card.read_text() if card.is_file() else "")
