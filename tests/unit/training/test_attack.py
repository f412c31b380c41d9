"""Membership inference on made-up confidences, and on models that learn by heart or have learned nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.privacy.attack import (
    Booleans,
    Floats,
    confidences,
    curve,
    likelihood_ratio,
    loss_threshold,
    memberships,
)

MODELS, IMAGES = 16, 500


def seen(gain: float, rng: np.random.Generator) -> tuple[Floats, Booleans]:
    """Confidences of models in images of different difficulty; being a training image adds `gain`."""
    members = memberships(MODELS, IMAGES, rng)
    difficulty = rng.normal(0, 5, IMAGES)
    return difficulty + gain * members + rng.normal(0, 1, (MODELS, IMAGES)), members


def areas(gain: float) -> tuple[float, float]:
    values, members = seen(gain, np.random.default_rng(0))
    both = (loss_threshold(values), likelihood_ratio(values, members))
    first, second = (curve(scores, members).area for scores in both)
    return first, second


def test_identical_distributions_are_guessed_at() -> None:
    assert areas(0.0) == pytest.approx((0.5, 0.5), abs=0.02)  # of 8,000: 0.006 is one deviation


def test_models_that_learn_by_heart_are_found_out_and_the_likelihood_ratio_knows_each_image() -> None:
    threshold, ratio = areas(3.0)
    assert 0.6 < threshold < 0.75  # hard training images look like easy others
    assert ratio > 0.97


def test_low_rates_of_false_positives_are_read_from_the_curve() -> None:
    values, members = seen(3.0, np.random.default_rng(0))
    found = curve(likelihood_ratio(values, members), members)
    assert found.at(0.01) > 0.5
    assert found.at(0.001) < found.at(0.01) < found.at(1.0) == 1.0


def test_each_model_has_half_of_the_images_and_each_image_half_of_the_models() -> None:
    members = memberships(6, 40, np.random.default_rng(0))
    assert set(members.sum(1)) == {20}
    assert set(members.sum(0)) == {3}
    assert not np.array_equal(members[0], members[2])


def test_equal_scores_are_no_information() -> None:
    members = np.array([True, False, True, False])
    flat = curve(np.zeros(4), members)
    assert flat.area == 0.5
    assert flat.at(0.1) == 0.0
    assert curve(np.array([3.0, 1.0, 2.0, 0.0]), members).area == 1.0
    assert curve(np.array([0.0, 1.0, 0.5, 2.0]), members).area == 0.0


def test_confidences_are_log_odds_even_of_certain_models() -> None:
    logits: NDArray[np.float64] = np.array([[1.0, 2.0, 0.5], [800.0, 0.0, 0.0]])
    found = confidences(logits, np.array([1, 0]))
    p = np.exp(2.0) / np.exp(logits[0]).sum()
    assert found[0] == pytest.approx(np.log(p / (1 - p)))
    assert found[1] == pytest.approx(800 - np.log(2))


def test_an_image_that_all_other_models_know_cannot_be_attacked() -> None:
    members = np.array([[True, False], [False, True], [False, True]])
    with pytest.raises(ValueError, match="of all other models or of none"):
        likelihood_ratio(np.zeros((3, 2)), members)
