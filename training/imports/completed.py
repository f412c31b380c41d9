"""Completes the manifest of an imported network."""

from pathlib import Path

from service.models.manifest import MODEL_FILE, Manifest, sha256_of
from training import versions
from training.errors import EvaluationError
from training.terminal import notice


def completed(draft: Manifest, folder: Path) -> Manifest:
    """Return a draft with the checksum of the graph in its folder and, if it can be counted, its cost."""
    try:
        return versions.completed(draft, folder, {})
    except EvaluationError as error:
        notice(f"the cost of a row is not known: {error}")
        return draft.model_copy(update={"sha256": sha256_of(folder / MODEL_FILE)})
