"""Temperature scaling (Guo et al. 2017): one number that makes a classifier's confidence believable.

Works on probabilities: log p differs from the logits by a constant of the row, which softmax takes out.
"""

import math

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import negative_log_likelihood

LEAST, MOST = 0.05, 20.0
STEPS = 30


def tempered(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return softmax(log p / temperature), (n, classes); the most probable class stays the same.

    A probability of 0 counts as float32's smallest.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    scaled: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def best_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature with the least negative log-likelihood, from 0.05 to 20.

    probabilities: (n, classes); labels: (n,). Above 1 the classifier was too sure of itself, below 1 too
    timid. The likelihood is concave in 1 / temperature, so it has one maximum, which a search by thirds finds
    to 1 part in 10,000.
    """
    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _loss(probabilities, labels, left) < _loss(probabilities, labels, right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def _loss(probabilities: NDArray[np.float32], labels: NDArray[np.int64], log_temperature: float) -> float:
    return negative_log_likelihood(tempered(probabilities, math.exp(log_temperature)), labels)
