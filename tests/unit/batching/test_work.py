"""How much of a batch's time counts as work."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.queue import BatchRecord
from service.batching.work import Worked, WorkMeter

SIZES = range(1, 9)


def ran(rows: int, seconds: float, *, on_loop: bool = False, failed: bool = False) -> BatchRecord:
    return BatchRecord(rows, "idle", 0.0, seconds, [], failed, [], on_loop)


def line(rows: int) -> float:
    """A batch takes 7 ms, and each row 1 ms."""
    return (7 + rows) / 1000


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_small_batch_counts_as_its_rows_in_a_full_one(on_loop: bool) -> None:
    worked = Worked()
    meter = WorkMeter(line, SIZES, lambda: 8, worked)
    meter.count([ran(1, 0.008, on_loop=on_loop)] * 5 + [ran(8, 0.015)] * 2)
    assert worked.seconds == pytest.approx(5 * 0.015 / 8 + 2 * 0.015)
    assert worked.spared_on_loop_seconds == pytest.approx(5 * (0.008 - 0.015 / 8) if on_loop else 0.0)


def test_a_device_that_slows_down_does_more_work_for_the_same_rows() -> None:
    worked = Worked()
    meter = WorkMeter(line, SIZES, lambda: 8, worked)
    meter.count([ran(4, 3 * line(4))])
    assert worked.seconds == pytest.approx(3 * 4 * line(8) / 8)


def test_a_warm_up_that_was_disturbed_is_mended_by_the_batches_that_run() -> None:
    """All times but that of the full batch were ten times too long: four rows would count for a tenth."""
    worked = Worked()
    meter = WorkMeter(lambda rows: line(rows) * (1 if rows == 8 else 10), SIZES, lambda: 8, worked)
    meter.count([ran(4, 10 * line(4))])
    assert worked.seconds >= 10 * line(4) * 4 / 8  # no batch is slower than a full one
    meter.count([ran(4, line(4)), ran(4, 0.0001, failed=True)])
    worked.seconds = 0.0
    meter.count([ran(4, line(4))])
    assert worked.seconds == pytest.approx(4 * line(8) / 8)


@pytest.mark.parametrize("seconds", [0.0, math.inf])
def test_without_a_measurement_all_time_is_work(seconds: float) -> None:
    worked = Worked()
    WorkMeter(lambda _: seconds, SIZES, lambda: 8, worked).count([ran(3, 2.0)])
    assert worked.seconds == 2.0


@given(
    st.lists(st.tuples(st.integers(1, 8), st.floats(0, 10), st.booleans())),
    st.lists(st.floats(0.001, 10), min_size=8, max_size=8),
)
def test_work_and_what_was_spared_are_never_more_than_the_time(
    batches: list[tuple[int, float, bool]], warm: list[float]
) -> None:
    worked = Worked()
    meter = WorkMeter(lambda rows: warm[rows - 1], SIZES, lambda: 6, worked)
    for rows, seconds, on_loop in batches:
        meter.count([ran(rows, seconds, on_loop=on_loop)])
    total = sum(seconds for _, seconds, _ in batches)
    assert -1e-9 <= worked.seconds <= total + 1e-6
    assert worked.seconds + worked.spared_on_loop_seconds <= total + 1e-6
