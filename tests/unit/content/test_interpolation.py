"""Latents between two."""

import numpy as np
import pytest

from service.content.interpolation import METHODS, Method, between

A, B = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_both_ends_are_exact(method: Method) -> None:
    way = between(A, B, 5, method)
    assert (way.shape, way.dtype) == ((5, 64), np.float32)
    assert np.array_equal(way[0], A)
    assert np.array_equal(way[-1], B)


def test_the_spherical_way_turns_by_equal_angles_and_keeps_the_length() -> None:
    a, b = A / np.linalg.norm(A), B / np.linalg.norm(B)
    way = between(a, b, 9, "spherical").astype(np.float64)
    assert np.linalg.norm(way, axis=1) == pytest.approx(np.ones(9), abs=1e-6)
    angles = np.arccos(np.clip((way[1:] * way[:-1]).sum(1), -1, 1))
    # float32's rounding, 6e-8, over angles of about 0.2
    assert angles == pytest.approx(np.full(8, np.arccos(a.astype(np.float64) @ b) / 8), rel=1e-4)


def test_the_linear_way_is_straight_and_shorter_in_the_middle() -> None:
    straight, round_ = between(A, B, 3, "linear"), between(A, B, 3, "spherical")
    assert straight[1] == pytest.approx((A + B) / 2)
    assert np.linalg.norm(straight[1]) < 0.8 * np.linalg.norm(A) < 1.2 * np.linalg.norm(round_[1])


@pytest.mark.parametrize("last", [A, 2 * A, -A, np.zeros_like(A)], ids=["same", "longer", "opposite", "zero"])
def test_without_an_arc_the_spherical_way_is_straight(last: np.ndarray) -> None:
    assert between(A, last, 4, "spherical") == pytest.approx(between(A, last, 4, "linear"), abs=1e-6)
