"""The command `default`: which model answers the requests of its task that name none."""

from pathlib import Path

from service.models.folder import model_folders, version_folders
from service.models.manifest import MANIFEST_FILE, Manifest
from service.models.signatures import SIGNATURE_FILE
from training.errors import SourceError
from training.provenance.bom import update_bom
from training.sources import version_folder
from training.versions import read_verified, write_manifest


def make_default(name: str, models_dir: Path) -> list[Path]:
    """Make a model's latest version the default of its task, and no other model's.

    Returns the folders that were changed, with their bills of materials. Raises SourceError, and then changes
    nothing.
    """
    chosen = version_folder(models_dir / name, None)
    task = read_verified(chosen).task
    changes: dict[Path, Manifest] = {}
    for model in model_folders(models_dir):
        for folder in version_folders(model, holding=MANIFEST_FILE).values():
            manifest = read_verified(folder)
            if manifest.task == task and manifest.default != (folder == chosen):
                changes[folder] = manifest.model_copy(update={"default": folder == chosen})
    for folder in changes:
        if (folder / SIGNATURE_FILE).exists():
            raise SourceError(f"{folder} is signed, so its manifest cannot change; sign after `default`")
    for folder, manifest in changes.items():
        write_manifest(folder, manifest)
        update_bom(folder)
    return list(changes)
