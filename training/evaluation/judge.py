"""The judge of generated images: a classifier that labels them, and whose features compare them.

Two classifiers do it. One watches the epochs of a training and chooses one (training/evaluation/epochs.py);
the published figures come from the other, which nothing was chosen by.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.models.folder import version_folders
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest
from training.datasets.splits import Splits
from training.errors import EvaluationError
from training.evaluation.metrics import Metrics
from training.onnx_files import open_session, run_in_parts
from training.sources import check_source
from training.versions import read_verified

# The model whose judgement is published.
JUDGE = "judge"


class Judge:
    """A published classifier as judge of generated images; it was trained on the same data.

    identity: its name, version and the first digits of its SHA-256, as metrics.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_verified(folder)
        self.identity: Metrics = {
            "classifier": f"{manifest.name}/{manifest.version}",
            "classifier_digest": manifest.sha256[:12],
        }
        self._session = open_session(folder / MODEL_FILE, ["features"])

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features (n, d) and the most probable labels (n,) of images (n, 28, 28)."""
        names = ["features", "probabilities"]
        features, probabilities = run_in_parts(self._session, names, {"images": images})
        return features, probabilities.argmax(1)


def judge_of(folder: Path, splits: Splits) -> Judge:
    """The judge in a folder.

    Raises SourceError, EvaluationError or RepositoryError unless it holds a classifier of the same data.
    """
    check_source(read_verified(folder), splits)
    return Judge(folder)


def recorded_judge(manifest: Manifest, models_dir: Path) -> Judge:
    """The judge that measured a version's metrics. Raises EvaluationError or RepositoryError."""
    judge = models_dir / str(manifest.metrics.get("classifier", JUDGE))
    if not (judge / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{judge}, which judged {manifest.name}/{manifest.version}, is missing")
    return Judge(judge)


def latest_judge(models_dir: Path, splits: Splits) -> Judge:
    """The highest version of the second judge that belongs to this data. Raises EvaluationError."""
    folders = version_folders(models_dir / JUDGE, holding=MANIFEST_FILE).values()
    suitable = [each for each in folders if read_manifest(each).metrics.get("data_digest") == splits.digest]
    if not suitable:
        raise EvaluationError(
            f"{models_dir / JUDGE} holds no version trained on {splits.name} (digest {splits.digest}), "
            f"which judges generated images: first run python -m training train {JUDGE} and "
            f"python -m training export {JUDGE}, with the same --data-dir and --models-dir"
        )
    return Judge(suitable[-1])
