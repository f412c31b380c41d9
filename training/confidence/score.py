"""The out-of-distribution score: a Mahalanobis distance of normalised features, of low rank.

The distance to the nearest class mean under a covariance that all classes share (Lee et al. 2018), of
features scaled to length 1: without the scaling, the MLP's score tells Fashion-MNIST from digits with an
AUROC of 0.82 to 0.95 on validation images, with it 0.9995. The covariance keeps the first directions of
the scatter within the classes and has one variance for all others (Tipping and Bishop 1999), which needs
74 products per feature where a full one for 1,024 features needs 1,034. Knows nothing of graphs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfidenceError

EPSILON = 1e-6
"""Added to the length of a row's features, which may be 0."""

SMALLEST = 1e-6
"""Variances below this count as this: the terms of the score are as large as their inverse, and float32 holds
seven digits."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """The weights of the score of d features, k directions and c classes.

    With x the features at length 1, the score is min(x @ linear + offset) - |x @ directions|^2: the squared
    distance, multiplied out, so that one small matrix product gives it.

    directions (d, k), linear (d, c), offset (c,).
    """

    directions: Floats
    linear: Floats
    offset: Floats

    def of(self, features: Floats) -> Floats:
        """Return the score of each row, (n,), of features (n, d); larger is stranger."""
        unit = features / (np.linalg.norm(features, axis=1, keepdims=True) + np.float32(EPSILON))
        near = (unit @ self.linear + self.offset).min(1)
        scores: Floats = near - np.square(unit @ self.directions).sum(1)
        return scores


def fit(features: Floats, labels: NDArray[np.int64], rank: int) -> Score:
    """Fit the score to the features (n, d) of training images and their labels (n,).

    Raises ConfidenceError if there are not more features than directions.
    """
    size = features.shape[1]
    if rank >= size:
        raise ConfidenceError(f"the rank is {rank}, expected less than the {size} features of the last layer")
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True) + EPSILON
    means = np.stack([unit[labels == label].mean(0) for label in np.unique(labels)])
    scatter = unit - means[np.searchsorted(np.unique(labels), labels)]
    variances, vectors = np.linalg.eigh(scatter.T @ scatter / len(scatter))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    variances = np.maximum(variances, SMALLEST)
    rest = float(variances[rank:].mean())
    return _multiplied_out(means, variances[:rank], vectors[:, :rank], rest)


def _multiplied_out(
    means: NDArray[np.float64], variances: NDArray[np.float64], vectors: NDArray[np.float64], rest: float
) -> Score:
    """Return the weights of (x - mean)' P (x - mean) with P = I / rest - B B', where |x| = 1."""
    directions = vectors * np.sqrt(np.maximum(1 / rest - 1 / variances, 0))  # B
    weighted = means / rest - (means @ directions) @ directions.T  # P mean, (c, d)
    offset = 1 / rest + (means * weighted).sum(1)
    arrays = (directions, -2 * weighted.T, offset)
    return Score(*(np.ascontiguousarray(array, np.float32) for array in arrays))
