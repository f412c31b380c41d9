"""Noise on training images and alone: what it is, what it does to the loss, and a run that learns from it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_runs import Workshop, new_run
from training.families import classifier
from training.families.noise import FAINTEST, GRAINS, noise_images, noisy
from training.runs.finished import load_weights


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.floats(0, 2), st.integers(1, 5))
def test_noisy_images_stay_images(most: float, count: int) -> None:
    images = noisy(torch.rand(count, 1, 28, 28), most, generator())
    assert images.shape == (count, 1, 28, 28)
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_noise_of_each_image_has_its_own_strength_up_to_the_most() -> None:
    grey = torch.full((1000, 1, 28, 28), 0.5)
    deviations = (noisy(grey, 0.1, generator()) - grey).std(dim=(1, 2, 3))
    assert deviations.min() < 0.005
    assert 0.095 < deviations.max() < 0.11
    assert deviations.mean() == pytest.approx(0.05, abs=0.003)


def test_the_generator_decides_the_noise() -> None:
    images = torch.rand(3, 1, 28, 28)
    first, again, other = (noisy(images, 0.3, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(noise_images(3, 28, generator()), noise_images(3, 28, generator()))


@given(st.integers(1, 9), st.integers(4, 30))
def test_noise_images_consist_of_squares_of_each_grain(count: int, side: int) -> None:
    images = noise_images(count, side, generator())
    assert images.shape == (count, 1, side, side)
    assert images.min() >= 0
    assert images.max() <= 1
    for number, image in enumerate(images[:, 0]):
        grain = GRAINS[number % len(GRAINS)]
        squares = image[::grain, ::grain]
        whole = squares.repeat_interleave(grain, 0).repeat_interleave(grain, 1)[:side, :side]
        assert torch.equal(image, whole)
        assert len(squares.unique()) == squares.numel()


def test_noise_images_differ_in_brightness() -> None:
    brightest = noise_images(300, 28, generator()).amax(dim=(1, 2, 3))
    assert FAINTEST * 0.9 < brightest.min() < 0.4
    assert brightest.max() > 0.9


def test_the_loss_of_noise_is_least_if_all_classes_are_as_likely() -> None:
    config = dataclasses.replace(classifier.CNN, noise_images=3)
    labels = torch.tensor([1, 2])
    of_digits = torch.randn(2, 10, generator=generator())
    even, uneven = torch.zeros(3, 10), torch.randn(3, 10, generator=generator(1))

    def loss(of_noise: torch.Tensor) -> float:
        return float(classifier.loss_of(torch.cat([of_digits, of_noise]), labels, None, config))

    digits = float(classifier.loss_of(of_digits, labels, None, classifier.CNN))
    assert loss(even) == pytest.approx((2 * digits + 3 * torch.tensor(10.0).log().item()) / 5)
    assert loss(even) < loss(uneven)


def test_a_run_learns_that_noise_shows_no_digit(tmp_path: Path, workshop: Workshop) -> None:
    config = dataclasses.replace(
        classifier.CNN, epochs=8, batch_size=20, ema_decay=0.5, dropout=0.0, noise=0.1, noise_images=10
    )
    surest = {}
    for name, each in {"noise": config, "none": dataclasses.replace(config, noise_images=0)}.items():
        run = new_run(tmp_path / name, each)
        classifier.train(each, workshop.splits, run)
        network = classifier.untrained(each)
        load_weights(network, tmp_path / name)
        with torch.no_grad():
            logits = network.eval()(noise_images(100, 28, generator(7)))
        surest[name] = float(logits.softmax(1).amax(1).mean())
    assert surest["noise"] < 0.8 * surest["none"]
