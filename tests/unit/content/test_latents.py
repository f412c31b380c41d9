"""Latents from a seed."""

import ast
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content.latents import MAX_SEED, draw_latents, draw_uniforms, random_seed


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_row_depends_only_on_its_seed_and_index(size: int) -> None:
    many = draw_latents(5, 50, size)
    assert many.shape == (50, size)
    assert many.dtype == np.float32
    for rows in (1, 3, 49):
        assert np.array_equal(draw_latents(5, rows, size), many[:rows])


def drawn_at_once(seed: int, rows: int, size: int) -> np.ndarray:
    """The latents as they were first written: the whole array in each step, from a Philox keyed by numpy."""
    pairs = math.ceil(size / 2)
    words = np.random.Philox(key=seed).random_raw(rows * math.ceil(2 * pairs / 4) * 4).reshape(rows, -1)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:, :pairs]))
    angle = 2.0 * np.pi * uniform[:, pairs : 2 * pairs]
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normals[:, :size].astype(np.float32)


@given(st.integers(0, MAX_SEED), st.integers(1, 300), st.integers(1, 130))
def test_latents_have_the_bits_that_they_always_had(seed: int, rows: int, size: int) -> None:
    drawn = draw_latents(seed, rows, size)
    assert drawn.tobytes() == drawn_at_once(seed, rows, size).tobytes()


def test_a_row_longer_than_a_group_is_drawn_too() -> None:
    assert draw_latents(3, 2, 5001).tobytes() == drawn_at_once(3, 2, 5001).tobytes()


def test_seeds_and_rows_differ() -> None:
    latents = [*draw_latents(0, 4, 100), *draw_latents(1, 4, 100), *draw_latents(MAX_SEED, 4, 100)]
    assert len({latent.tobytes() for latent in latents}) == 12


def test_values_are_standard_normal() -> None:
    values = np.sort(draw_latents(3, 2000, 100).ravel().astype(np.float64))
    assert np.isfinite(values).all()
    normal = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values[::100]])
    # Kolmogorov-Smirnov: with 200,000 values the distance is below 0.005 with p > 0.9999.
    assert np.abs(normal - np.arange(0, len(values), 100) / len(values)).max() < 0.005


def test_the_stream_never_changes() -> None:
    """Callers keep seeds; these values are from the day the function was written."""
    assert draw_latents(1, 1, 4)[0] == pytest.approx([0.8587950, 0.5618760, 1.2832655, 0.1112373], abs=1e-6)


def test_columns_are_uncorrelated() -> None:
    z = draw_latents(5, 50_000, 4).astype(np.float64)
    # Six standard errors: 1 / sqrt(50,000) of the mean, sqrt(2) as much of the covariances.
    assert np.abs(z.mean(0)).max() < 6 / np.sqrt(50_000)
    assert np.abs(np.cov(z, rowvar=False) - np.eye(4)).max() < 6 * np.sqrt(2 / 50_000)


def test_uniform_numbers_are_the_same_for_ever_and_never_zero() -> None:
    # Of seed 1, as numpy 2.4 gave them.
    assert draw_uniforms(1, 3).tolist() == [0.3035680343067587, 0.848708749685777, 0.1561347780434732]
    values = draw_uniforms(0, 100_000)
    assert values.min() > 0
    assert values.max() <= 1


def test_drawing_loads_nothing_heavy() -> None:
    """Training and every HTTP worker import it."""
    script = "import sys, service.content.latents; print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(run.stdout)}
    assert not loaded & {"PIL", "pydantic", "onnxruntime", "fastapi", "torch", "uvicorn"}


def test_a_chosen_seed_survives_json() -> None:
    assert all(seed == int(float(seed)) for seed in (random_seed() for _ in range(100)))
