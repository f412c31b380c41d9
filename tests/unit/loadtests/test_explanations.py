"""What the load test of explanations makes of two slices; the load itself is not for a busy machine."""

import numpy as np
import pytest

from loadtests.explanations import _slice
from loadtests.generator import Outcome


def outcome(latency: float, status: int = 200) -> Outcome:
    due = np.linspace(0, 1, 100)
    some = np.full(100, status, np.int16)
    return Outcome(due, due, due + latency, np.zeros(100, np.bool_), some, 2.0, 1, 0.1)


def test_a_slice_compares_the_p99_with_explanations_to_that_without() -> None:
    seen = {False: (outcome(0.010), None), True: (outcome(0.012), outcome(0.3))}
    measured = _slice(seen)
    assert measured.ratio == pytest.approx(1.2)
    assert (measured.classified, measured.explained, measured.failed) == (50, 50, 0)


def test_a_classification_that_fails_is_counted() -> None:
    seen = {False: (outcome(0.010), None), True: (outcome(0.010, 429), outcome(0.3, 504))}
    assert _slice(seen).failed == 100
