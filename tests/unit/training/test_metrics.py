import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as divergence

from training.evaluation.metrics import (
    brier_score,
    calibration_error,
    frechet_distance,
    kl_divergence,
    log_likelihood,
    negative_log_likelihood,
    precision_recall,
    worst_recall,
)

# Three answers of a classifier of two classes: right, wrong, right.
PROBABILITIES = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], np.float32)
TRUTH = np.array([0, 1, 1])


def with_moments(mean: np.ndarray, covariance: np.ndarray, rows: int = 500) -> np.ndarray:
    """Features whose sample mean and covariance are exactly those given, up to float32."""
    noise = np.random.default_rng(0).normal(size=(rows, len(mean)))
    noise -= noise.mean(0)
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False))).T
    features: np.ndarray = (whitened @ np.linalg.cholesky(covariance).T + mean).astype(np.float32)
    return features


def test_frechet_distance_of_equal_covariances_compares_means() -> None:
    first = with_moments(np.zeros(3), np.eye(3))
    second = with_moments(np.array([3.0, 0.0, 4.0]), np.eye(3))
    assert frechet_distance(first, second) == pytest.approx(25.0, rel=1e-5)  # float32 features
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_commuting_covariances() -> None:
    """Then it is the sum of the squared differences of the standard deviations."""
    first = with_moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    second = with_moments(np.zeros(3), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(first, second) == pytest.approx(1 + 0 + 4, rel=1e-5)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 3.0]])
    # In two dimensions trace((ab)^1/2) = sqrt(trace(ab) + 2 sqrt(det(ab))).
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    distance = frechet_distance(with_moments(np.zeros(2), a), with_moments(np.zeros(2), b))
    assert distance == pytest.approx(expected, rel=1e-4)
    assert distance > 0.1


def test_frechet_distance_is_symmetric_and_accepts_dead_features() -> None:
    first = with_moments(np.ones(4), np.diag([1.0, 2.0, 3.0, 4.0]))
    second = with_moments(np.zeros(4), np.eye(4))
    second[:, 3] = 0.0
    distance = frechet_distance(first, second)
    assert distance == pytest.approx(frechet_distance(second, first), rel=1e-6)
    assert np.isfinite(distance)


def test_precision_and_recall_of_points_on_a_line() -> None:
    """Balls reach the nearest other: 1 far for all but the real point 50, whose ball is 31 to 69."""
    real = np.array([[0.0], [1.0], [30.0], [31.0], [50.0]], np.float32)
    generated = np.array([[0.5], [1.5], [2.5], [3.5]], np.float32)
    precision, recall = precision_recall(real, generated, neighbours=1)
    assert precision == 2 / 4  # 0.5 and 1.5
    assert recall == 2 / 5  # 0 and 1


def test_samples_that_are_the_real_images_are_perfect() -> None:
    features = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    assert precision_recall(features, features) == (1.0, 1.0)


def test_collapsed_samples_have_precision_and_no_recall() -> None:
    real = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    generated = real[:1] + np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32) * 1e-3
    precision, recall = precision_recall(real, generated)
    assert precision == 1.0
    assert recall <= 1 / 300


def test_negative_log_likelihood_by_hand() -> None:
    expected = -(math.log(0.8) + math.log(0.4) + math.log(0.9)) / 3
    # float32 probabilities
    assert negative_log_likelihood(PROBABILITIES, TRUTH) == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(negative_log_likelihood(np.array([[1.0, 0.0]], np.float32), np.array([1])))


def test_brier_score_by_hand() -> None:
    expected = (2 * 0.2**2 + 2 * 0.6**2 + 2 * 0.1**2) / 3
    assert brier_score(PROBABILITIES, TRUTH) == pytest.approx(expected, rel=1e-6)


def test_calibration_error_by_hand() -> None:
    """Confidences 0.8, 0.6 and 0.9 lie in bins of their own; only the middle one is wrong."""
    expected = (0.2 + 0.6 + 0.1) / 3
    assert calibration_error(PROBABILITIES, TRUTH) == pytest.approx(expected, rel=1e-6)
    always_half = np.full((4, 2), 0.5, np.float32)
    assert calibration_error(always_half, np.array([0, 0, 1, 1])) == pytest.approx(0.0, abs=1e-7)


def test_worst_recall_by_hand() -> None:
    assert worst_recall(PROBABILITIES, TRUTH) == 0.5


def test_likelihood_and_divergence_agree_with_torch() -> None:
    logits, images = torch.randn(3, 28, 28) * 20, torch.rand(3, 28, 28) < 0.5
    expected = Bernoulli(logits=logits.double()).log_prob(images.double()).sum((1, 2))
    # float32 terms of up to 60 nats
    np.testing.assert_allclose(log_likelihood(logits.numpy(), images.numpy()), expected, rtol=1e-6)
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    expected = divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    np.testing.assert_allclose(kl_divergence(mean.numpy(), log_variance.numpy()), expected, rtol=1e-5)
