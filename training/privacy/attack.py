"""Membership inference: which images was a model trained on? Two attacks, on arrays; knows no torch.

Several models are trained on halves of one pool of images. Each is attacked in turn, and each attack gives
every image of the pool a score: the higher, the more likely the image was among the model's training images.

- `loss_threshold` (Yeom et al. 2018): the model's own loss.
- `likelihood_ratio` (LiRA; Carlini et al. 2022): how much likelier the model's confidence is under the
  distribution of confidences with the image than under that without it, both from the other models.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

# The rate of false positives at which an attack is judged, beside the area under its curve: an attack that
# is right about a few images, and knows about which, does harm that an average hides (Carlini et al. 2022).
LOW_RATES = (0.001, 0.01)

# A standard deviation below which confidences count as equal.
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic, from (0, 0) to (1, 1)."""

    false_positives: Floats
    true_positives: Floats

    @property
    def area(self) -> float:
        """The probability that a member's score is higher than a non-member's; 0.5 is guessing."""
        return float(np.trapezoid(self.true_positives, self.false_positives))

    def at(self, rate: float) -> float:
        """The highest rate of true positives that needs no higher rate of false positives than this."""
        return float(self.true_positives[self.false_positives <= rate].max())


def memberships(models: int, images: int, rng: np.random.Generator) -> Booleans:
    """Which image is a training image of which model, (models, images).

    Each model has half of the images, and each image is in half of the models: every second model has those
    that the one before lacks. models and images: even numbers.
    """
    result = np.zeros((models, images), bool)
    for i in range(0, models, 2):
        result[i, rng.permutation(images)[: images // 2]] = True
        result[i + 1] = ~result[i]
    return result


def confidences(logits: Floats, labels: NDArray[np.int64]) -> Floats:
    """log(p / (1 - p)) of the true class's probability p, (n,): nearly normal (Carlini et al. 2022).

    logits: (n, classes). Computed from the logits, because 1 - p is 0 in floats for a confident model.
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    highest = others.max(1)
    rest: Floats = highest + np.log(np.exp(others - highest[:, None]).sum(1))
    difference: Floats = logits[rows, labels] - rest
    return difference


def loss_threshold(seen: Floats) -> Floats:
    """Each model's scores, (models, images): its negative loss.

    seen: confidences, (models, images). -log p = log(1 + exp(-confidence)).
    """
    return -np.logaddexp(0, -seen)


def likelihood_ratio(seen: Floats, members: Booleans) -> Floats:
    """Each model's scores, (models, images), from the confidences of all other models.

    seen, members: (models, images). The means are each image's own, the two variances are those of all images
    together, as the authors advise for few models.
    """
    scores = np.empty_like(seen)
    for i in range(len(seen)):
        others, inside = np.delete(seen, i, 0), np.delete(members, i, 0)
        scores[i] = _log_density(seen[i], others, inside) - _log_density(seen[i], others, ~inside)
    return scores


def _log_density(values: Floats, others: Floats, chosen: Booleans) -> Floats:
    """The log density, less a constant, of values (images,) under the normal laws of the chosen others."""
    counts = chosen.sum(0)
    if not counts.all():
        raise ValueError("an image is a training image of all other models or of none")
    means: Floats = np.where(chosen, others, 0).sum(0) / counts
    spread = float(np.sqrt(((others - means)[chosen] ** 2).sum() / max(1, counts.sum() - len(counts))))
    spread = max(spread, SMALLEST_DEVIATION)
    density: Floats = -(((values - means) / spread) ** 2) / 2 - np.log(spread)
    return density


def curve(scores: Floats, members: Booleans) -> Curve:
    """The curve of an attack that calls all scores above a threshold members, over all thresholds."""
    scores, members = scores.ravel(), members.ravel()
    order = np.argsort(-scores, kind="stable")
    members = members[order]
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores fall on one side together
    found, wrong = np.cumsum(members)[last], np.cumsum(~members)[last]
    zero = np.zeros(1)
    return Curve(np.concatenate([zero, wrong / wrong[-1]]), np.concatenate([zero, found / found[-1]]))
