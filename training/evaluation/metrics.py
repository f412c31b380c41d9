"""The formulas of the metrics, on numpy arrays. Knows nothing of models, files or torch.

Features come from a classifier trained on the same data, so the distances compare models with each
other and with real images; they are not those of papers, which use Inception features.
"""

import numpy as np
from numpy.typing import NDArray

Metrics = dict[str, float | int | str]
"""Metrics by name, as a manifest holds them."""

CALIBRATION_BINS = 15


def negative_log_likelihood(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean of -ln p(label), in nats; a probability of 0 counts as float32's smallest."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error, over bins of equal width in confidence (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean squared distance of the probabilities from the one-hot labels (Brier 1950); 0 to 2."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def worst_recall(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The recall of the worst recognised class: the fraction of its images that are recognised."""
    correct = probabilities.argmax(axis=1) == labels
    return min(float(correct[labels == label].mean()) for label in np.unique(labels))


def log_likelihood(logits: NDArray[np.float32], images: NDArray[np.bool_]) -> NDArray[np.float64]:
    """log p(x | z, y) of binary images under independent Bernoulli pixels, (n,), in nats."""
    nats: NDArray[np.float64] = np.logaddexp(0, np.where(images, -logits, logits)).sum((1, 2), np.float64)
    return -nats


def kl_divergence(mean: NDArray[np.float32], log_variance: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), (n,), in nats."""
    terms = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    nats: NDArray[np.float64] = terms.sum(1, dtype=np.float64)
    return nats


def frechet_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The distance between the Gaussians of two sets of features, (n, d) and (m, d) (Heusel et al. 2017).

    |mean difference|^2 + trace(C1 + C2 - 2 (C1 C2)^1/2). The eigenvalues of C1 C2 are those of the
    symmetric S C2 S with S = C1^1/2, which avoids the square root of an asymmetric matrix.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    difference = first.mean(0) - second.mean(0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross)


def precision_recall(
    real: NDArray[np.float32], generated: NDArray[np.float32], neighbours: int = 3
) -> tuple[float, float]:
    """Fidelity and diversity, both 0..1 (Kynkaanniemi et al. 2019), from features (n, d) and (m, d).

    Precision is the fraction of generated images inside the real set, recall the fraction of real images
    inside the generated one. A set is the union of balls around its members, each as large as the distance
    to its `neighbours`-th nearest other member; 3 is the paper's choice.
    """
    distances = _squared_distances(generated, real)  # (m, n)
    precision = (distances <= _radii(real, neighbours)[None, :]).any(1).mean()
    recall = (distances <= _radii(generated, neighbours)[:, None]).any(0).mean()
    return float(precision), float(recall)


def class_distance(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean distance between two members of a class, over the classes; features (n, d), labels (n,).

    It falls to 0 if a class collapses to one image, which precision and recall of all classes may hide.
    """
    means = []
    for label in np.unique(labels):
        members = features[labels == label].astype(np.float64)
        if len(members) > 1:
            distances = np.sqrt(_squared_distances(members, members))
            np.fill_diagonal(distances, 0)
            means.append(distances.sum() / (len(members) * (len(members) - 1)))
    return float(np.mean(means))


def _radii(features: NDArray[np.float32], neighbours: int) -> NDArray[np.float32]:
    """The squared distance of each row to its n-th nearest other row; the nearest of all is itself."""
    radii: NDArray[np.float32] = np.partition(_squared_distances(features, features), neighbours, axis=1)
    return radii[:, neighbours]


def _squared_distances(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """All pairs, (n, m); the features are centred first, for precision."""
    centre = second.mean(0)
    first, second = first - centre, second - centre
    norms = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :]
    distances: NDArray[np.float32] = norms - 2 * first @ second.T
    return distances.clip(0)
