"""How long a row takes, and who would be late; time is a number here."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.pace import DEADLINE_SHARE, Pace


def steady(row_seconds: float, max_batch_size: int = 4) -> Pace:
    """A pace that has seen a hundred full batches, with nothing queued in between."""
    pace = Pace(max_batch_size)
    for _ in range(100):
        pace.rows_in_flight += max_batch_size
        pace.note_batch(max_batch_size, 0.0, row_seconds * max_batch_size, 0)
    return pace


def test_an_idle_device_rejects_nobody() -> None:
    assert steady(10.0).check_deadline(0, 1, 1e-9) is None


def test_a_deadline_that_has_passed_is_left_to_the_expiry() -> None:
    pace = steady(10.0)
    assert pace.check_deadline(8, 1, 0.0) is None
    assert pace.check_deadline(8, 1, -1.0) is None


def test_a_request_behind_a_full_batch_waits_for_a_full_batch_of_its_own() -> None:
    pace = steady(0.25)
    limit = (4 + 4) * 0.25 / DEADLINE_SHARE
    assert pace.check_deadline(4, 1, limit * 1.01) is None
    refusal = pace.check_deadline(4, 1, limit * 0.99)
    assert refusal is not None
    assert refusal.late
    assert "a response would take 2.000 s" in refusal.why


@given(
    st.floats(1e-6, 1.0),
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.floats(1e-6, 1e3),
    st.floats(1.01, 10),
)
def test_more_time_never_turns_an_accepted_request_away(
    row_seconds: float, queued: int, rows: int, seconds: float, factor: float
) -> None:
    pace = steady(row_seconds)
    if pace.check_deadline(queued, rows, seconds) is None:
        assert pace.check_deadline(queued, rows, seconds * factor) is None
    assert pace.check_deadline(queued, rows, math.inf) is None


def test_the_average_follows_a_change_of_speed() -> None:
    pace = steady(1.0)
    for _ in range(100):
        pace.rows_in_flight += 4
        pace.note_batch(4, 0.0, 0.4, 0)
    assert pace.row_seconds == pytest.approx(0.1, rel=1e-3)


def test_a_pause_hardly_moves_the_mean() -> None:
    pace = steady(0.001)
    pace.rows_in_flight += 4
    pace.note_batch(4, 0.0, 0.104, 0)
    assert pace.row_seconds > 3 * 0.001
    assert pace.mean_row_seconds < 1.8 * 0.001


def test_small_batches_hardly_move_the_mean() -> None:
    pace = steady(0.001, max_batch_size=100)
    for _ in range(20):
        pace.rows_in_flight += 1
        pace.note_batch(1, 0.0, 0.01, 0)
    assert pace.mean_row_seconds < 1.1 * 0.001 < pace.row_seconds
