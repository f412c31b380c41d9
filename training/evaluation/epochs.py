"""The quality of a generator's samples after an epoch, against the validation images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import RepositoryError
from training.datasets.splits import Splits, spread
from training.errors import EvaluationError, SourceError
from training.evaluation.judge import judge_of
from training.evaluation.metrics import class_distance, frechet_distance, precision_recall
from training.terminal import notice

# Precision and recall compare all pairs; 2,000 images give them to about 0.01.
NEIGHBOUR_ROWS = 2000


JUDGE = "models/cnn/1"
NO_JUDGE = "none"


def epoch_quality(judge: str, splits: Splits) -> "EpochQuality | None":
    """The measure of a run with this judge; None if it has none. Raises EvaluationError.

    The default judge is for MNIST: on other data, or without it, a notice says that samples are not judged.
    """
    if judge == NO_JUDGE:
        return None
    try:
        return EpochQuality(Path(judge), splits)
    except (RepositoryError, SourceError, EvaluationError) as error:
        if judge == JUDGE:
            notice(f"the samples of each epoch are not judged: {error}. See --set judge=FOLDER")
            return None
        raise EvaluationError(
            f"{error}. It is to judge the samples of each epoch: train and export a classifier of this data "
            f"first, and give its folder (--set judge=FOLDER), or give --set judge={NO_JUDGE}"
        ) from None


class EpochQuality:
    """Judges samples in the features of a published classifier, which their training never sees.

    labels: int64, those of the validation images; a sample is wanted for each.
    Raises SourceError or EvaluationError unless the folder holds a classifier of the same data.
    """

    def __init__(self, folder: Path, splits: Splits) -> None:
        self._judge = judge_of(folder, splits)
        self.labels = splits.validation.labels
        self._real, _ = self._judge(splits.validation.images)

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Return the metrics of samples (n, 28, 28), one for each of `labels`, by name.

        validation_distance is that of Frechet; validation_diversity is `class_distance` as a fraction of the
        validation images' own; validation_agreement_0 ... _9: how many samples of a class are read as it.
        """
        features, seen = self._judge(images)
        rows = spread(len(images), NEIGHBOUR_ROWS)
        precision, recall = precision_recall(self._real[rows], features[rows])
        right = seen == self.labels
        return {
            "validation_distance": frechet_distance(features, self._real),
            "validation_precision": precision,
            "validation_recall": recall,
            "validation_diversity": class_distance(features, self.labels)
            / class_distance(self._real, self.labels),
            "validation_agreement": float(right.mean()),
        } | {
            f"validation_agreement_{label}": float(right[self.labels == label].mean())
            for label in np.unique(self.labels)
        }
