import numpy as np
import pytest

from training.evaluation.draws import normals, uniforms

# Of seed 1, as numpy 2.4 gave them.
FIRST_UNIFORMS = [0.3035680343067587, 0.848708749685777, 0.1561347780434732]


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
