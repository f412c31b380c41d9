"""Which versions the reports measure."""

from collections.abc import Sequence
from pathlib import Path

from service.models.folder import model_folders, version_folders
from service.models.manifest import FP16_SUFFIX, MANIFEST_FILE, Task
from training.datasets.splits import Splits
from training.errors import EvaluationError
from training.sources import check_source
from training.versions import read_verified


def latest_versions(names: Sequence[str], models_dir: Path, splits: Splits, task: Task) -> dict[str, Path]:
    """The folder of each named model's latest version, or of every model's for a task, by name.

    Models in float16, which are for GPUs, are left out unless they are named. Raises EvaluationError, or
    SourceError for a named model of another task or of other data.
    """
    found: dict[str, Path] = {}
    for model in model_folders(models_dir):
        versions = version_folders(model, holding=MANIFEST_FILE)
        if not versions or (names and model.name not in names):
            continue
        folder = versions[max(versions)]
        manifest = read_verified(folder)
        for_gpus = model.name.endswith(FP16_SUFFIX)
        if names or (manifest.task == task and not for_gpus):
            check_source(manifest, splits, (task,))
            found[model.name] = folder
    missing = sorted({*names} - {*found})
    if missing or not found:
        raise EvaluationError(f"{models_dir} holds no model for {task} {', '.join(missing)}".rstrip())
    return found
