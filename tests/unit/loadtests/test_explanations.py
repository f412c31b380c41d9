"""What the load test of explanations makes of two slices; the load itself is not for a busy machine."""

import numpy as np
import pytest

from loadtests.explanations import LEAD_SECONDS, _explanation_seconds, _slice, interval
from loadtests.generator import Outcome


def outcome(latency: float, status: int = 200, lead_latency: float = 0.0) -> Outcome:
    """One hundred requests in the lead, and one hundred in the second after it."""
    due = np.concatenate(
        [np.linspace(0, LEAD_SECONDS, 100, endpoint=False), LEAD_SECONDS + np.linspace(0, 1, 100)]
    )
    done = due + np.where(due < LEAD_SECONDS, lead_latency, latency)
    some = np.full(200, status, np.int16)
    return Outcome(due, due, done, np.zeros(200, np.bool_), some, LEAD_SECONDS + 1, 1, 0.1)


def test_a_slice_compares_the_p99_with_explanations_to_that_without() -> None:
    measured = _slice(outcome(0.010), outcome(0.012))
    assert measured.ratio == pytest.approx(1.2)
    assert (measured.classified, measured.classified_with, measured.failed) == (100, 100, 0)


def test_what_was_due_before_the_explanations_began_does_not_count() -> None:
    assert _slice(outcome(0.010), outcome(0.012, lead_latency=1.0)).ratio == pytest.approx(1.2)


def test_a_classification_that_fails_is_counted() -> None:
    assert _slice(outcome(0.010), outcome(0.010, 429)).failed == 100


def test_an_explanation_that_ends_after_the_load_tells_nothing() -> None:
    sent = np.array([0.0, 0.0, 1.0])
    done = np.array([0.9, 0.7, 9.0])
    ok = np.full(3, 200, np.int16)
    explained = Outcome(sent, sent, done, np.zeros(3, np.bool_), ok, LEAD_SECONDS + 1, 2, 0.1)
    assert _explanation_seconds(explained) == pytest.approx([0.7, 0.9])


@pytest.mark.slow
def test_the_interval_holds_the_true_median_in_about_19_of_20_runs() -> None:
    rng = np.random.default_rng(1)
    runs = [interval(rng.lognormal(np.log(1.1), 0.4, 40).tolist()) for _ in range(60)]
    assert sum(low <= 1.1 <= high for low, high in runs) >= 52
    assert np.mean([high - low for low, high in runs]) < 0.5
