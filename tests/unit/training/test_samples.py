from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.families.grids import (
    frechet_distance,
    grid_labels,
    normals,
    precision_recall,
    save_grid,
    uniforms,
)

# Of seed 1, as numpy 2.4 gave them.
FIRST_UNIFORMS = [0.3035680343067587, 0.848708749685777, 0.1561347780434732]


def with_moments(mean: np.ndarray, covariance: np.ndarray, rows: int = 500) -> np.ndarray:
    """Features whose sample mean and covariance are exactly those given, up to float32."""
    noise = np.random.default_rng(0).normal(size=(rows, len(mean)))
    noise -= noise.mean(0)
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False))).T
    return (whitened @ np.linalg.cholesky(covariance).T + mean).astype(np.float32)


def test_grid_runs_from_left_to_right_then_down(tmp_path: Path) -> None:
    images = np.zeros((20, 28, 28), np.uint8)
    images[11] = 200
    save_grid(images, tmp_path / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (56, 280)
    assert (picture[28:, 28:56] == 200).all()
    assert picture.sum() == 200 * 28 * 28


def test_grid_has_a_row_of_each_class() -> None:
    assert grid_labels().reshape(10, 10)[7].tolist() == [7] * 10


def test_frechet_distance_of_equal_covariances_is_that_of_the_means() -> None:
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


def test_frechet_distance_is_the_same_both_ways_and_takes_dead_features() -> None:
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


def test_raw_words_are_the_same_for_ever() -> None:
    assert uniforms(1, (3,)).tolist() == FIRST_UNIFORMS
    assert normals(1, (4, 3)).dtype == np.float32
    assert np.array_equal(normals(1, (4, 3)), normals(1, (4, 3)))
    assert not np.array_equal(normals(1, (4, 3)), normals(2, (4, 3)))


def test_normals_are_standard_normal_and_uncorrelated() -> None:
    z = normals(5, (50_000, 4)).astype(np.float64)
    # Six standard errors: 1 / sqrt(50,000) of the mean, sqrt(2) as much of the covariances.
    assert np.abs(z.mean(0)).max() < 6 / np.sqrt(50_000)
    assert np.abs(np.cov(z, rowvar=False) - np.eye(4)).max() < 6 * np.sqrt(2 / 50_000)
    assert (np.abs(z) < 1).mean() == pytest.approx(0.6827, abs=0.01)


def test_uniforms_never_are_zero() -> None:
    values = uniforms(0, (100_000,))
    assert values.min() > 0
    assert values.max() <= 1
