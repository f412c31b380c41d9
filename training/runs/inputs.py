"""What a run is made from, for its record: hyperparameters, data, and the models and runs that it reads.

A path may hold other weights tomorrow: the digests tell whether it does.
"""

import dataclasses
from pathlib import Path
from typing import Any

from service.models.manifest import MANIFEST_FILE, sha256_of
from training.runs.finished import best_file
from training.versions import read_verified

FOLDERS = ("judge", "reader", "source", "teacher")
"""The hyperparameters that name the folder of a published model or of an earlier run, or `none`."""


def record_of(model: str, data_digest: str, config: Any) -> dict[str, Any]:
    """A configuration's fields by name, and `model`, `data_digest` and the digests of its FOLDERS.

    The digest of `teacher` is `teacher_digest`: the SHA-256 of a model's graph, or of the best weights of a
    run. A folder that holds neither has none: whoever reads it says what is missing.
    config: a dataclass. Raises EvaluationError or RepositoryError if a published model is not whole.
    """
    record = {"model": model, "data_digest": data_digest} | dataclasses.asdict(config)
    for name in FOLDERS:
        if name in record and (digest := _digest(Path(record[name]))) is not None:
            record[f"{name}_digest"] = digest
    return record


def _digest(folder: Path) -> str | None:
    if (folder / MANIFEST_FILE).is_file():
        return read_verified(folder).sha256
    weights = folder / best_file(folder)
    return sha256_of(weights) if weights.is_file() else None
