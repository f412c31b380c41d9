"""The derivation of a pod's costs from what it spent under several loads."""

from dataclasses import asdict, replace

import pytest

from loadtests.measured_pod import Spent, Step
from loadtests.simulation.calibration import Calibration, calibration_of

STEP = Step(0, 0, 0, 0, 0.0, 0.0, 0.0)
BATCH, ROW, TURN, REQUEST = 0.001, 0.0001, 0.0005, 0.00005


def load(rows: float, *, others: bool = False, delay: float = 0.0, batches: float = 1000) -> Spent:
    """A thousand batches of this many rows, plus one of padding. others: whether another thread ran them.

    delay: the fraction of the time for which the main thread had no core.
    """
    compute = batches * (BATCH + ROW * (rows + 1))
    main = batches * (TURN + REQUEST * rows) + (0.0 if others else compute)
    return Spent(
        replace(STEP, p50_seconds=0.01 * rows, answered_rate=rows),
        answered=batches * rows,
        refused=0,
        cpu_seconds=main + (compute if others else 0.0),
        main_cpu_seconds=main,
        main_delay_seconds=delay * main / (1 - delay),
        batches=batches,
        compute_seconds=compute if others else compute / (1 - delay),
        rows=batches * rows,
        padded_rows=batches * (rows + 1),
    )


REFUSING = replace(load(1), refused=63_000, cpu_seconds=3.01, main_cpu_seconds=3.01)
"""Its batches took 1.2 s, their iterations 0.5 s, their requests 0.05 s; 1.26 s remain: 20 us per
rejection."""


def calibration(*loads: Spent, cores: int = 1, refusing: Spent = REFUSING, largest: int = 256) -> Calibration:
    return Calibration(list(loads), refusing, largest, cores)


LOADS = [load(rows) for rows in (1, 10, 60)]


def test_both_lines_fit_batches_of_one_image_requests() -> None:
    measured = calibration(*LOADS)
    costs = measured.costs(start_seconds=2.0)
    assert (costs.batch_seconds, costs.row_seconds) == pytest.approx((BATCH, ROW))
    assert (costs.turn_seconds, costs.request_seconds) == pytest.approx((TURN, REQUEST))
    assert costs.refuse_seconds == pytest.approx(1.26 / 63_000)
    assert costs.overhead_seconds == pytest.approx(0.01 - BATCH - ROW - TURN - REQUEST)
    assert (costs.start_seconds, costs.cores, costs.max_batch_size) == (2.0, 1, 256)
    assert measured.answered_rate == 60
    assert measured.speed_change(load(75)) == pytest.approx(0.25)


@pytest.mark.parametrize(("rows", "others"), [(1, False), (33, False), (33, True)])
def test_the_speed_is_expected_over_measured_cpu_time(rows: int, others: bool) -> None:
    measured = calibration(*LOADS)
    costs, then = measured.costs(2.0), load(rows, others=others)
    assert measured.speed(then, costs) == pytest.approx(1.0)
    names = ("cpu_seconds", "main_cpu_seconds", "compute_seconds")
    slower = replace(then, **{name: 1.25 * getattr(then, name) for name in names})
    assert measured.speed(slower, costs) == pytest.approx(0.8)
    refusing = replace(REFUSING, refused=0, main_cpu_seconds=1.75, cpu_seconds=1.75)
    assert [measured.speed(each, costs) for each in (REFUSING, refusing)] == pytest.approx([1.0, 1.0])


def test_large_and_small_batches_count_the_same() -> None:
    """A tenth more for 60 rows moves the line no further than a tenth more for one row."""
    slower = replace(LOADS[2], compute_seconds=1.1 * LOADS[2].compute_seconds)
    costs = calibration(*LOADS[:2], slower).costs(2.0)
    assert costs.device_seconds(1) == pytest.approx(BATCH + ROW, rel=0.05)


@pytest.mark.parametrize("cores", [1, 4])
def test_batches_on_the_thread_cost_the_loop_no_cpu_time(cores: int) -> None:
    """On one core they count in CPU time; on several in wall time, and 3 ms are too long for the loop."""
    loads = [load(rows, others=True) for rows in (1, 10, 60)]
    if cores > 1:
        loads = [replace(each, compute_seconds=10 * each.compute_seconds) for each in loads]
    measured = calibration(*loads, cores=cores)
    costs = measured.costs(2.0)
    assert [measured.loop_share(each) for each in loads] == [0.0, 0.0, 0.0]
    assert (costs.turn_seconds, costs.request_seconds) == pytest.approx((TURN, REQUEST))
    factor = 10 if cores > 1 else 1
    assert (costs.batch_seconds, costs.row_seconds) == pytest.approx((factor * BATCH, factor * ROW))


def test_on_several_cores_short_batches_count_as_inline() -> None:
    measured = calibration(*LOADS, cores=4)
    assert [measured.loop_share(each) for each in LOADS] == [1.0, 1.0, 1.0]
    assert measured.costs(2.0).turn_seconds == pytest.approx(TURN)


def test_a_fraction_of_the_batches_may_have_run_inline() -> None:
    """Other threads computed for 0.84 of 2.1 s: those batches did not run inline."""
    both = replace(load(10), cpu_seconds=load(10).main_cpu_seconds + 0.84)
    assert calibration(both).loop_share(both) == pytest.approx(0.6)


def test_time_without_a_core_is_subtracted_from_batches_too() -> None:
    """A thread that had a core for half of the time computed for half of its batches' wall time."""
    busy = [load(rows, delay=0.5) for rows in (1, 10, 60)]
    quiet, costs = (vars(calibration(*loads).costs(2.0)) for loads in (LOADS, busy))
    assert costs == pytest.approx(quiet)


def test_smaller_batches_of_the_service_limit_the_models() -> None:
    assert calibration(*LOADS, largest=32).costs(2.0).max_batch_size == 32
    assert calibration(*LOADS, largest=112).costs(2.0).max_batch_size == 256  # cut to fit the event loop


def test_no_cost_is_negative() -> None:
    """If one term of the line would be negative, as for 1 ms and 20 ms, the other represents both."""
    loads = [
        replace(each, main_cpu_seconds=each.compute_seconds + seconds, cpu_seconds=each.main_cpu_seconds)
        for each, seconds in zip((load(1), load(10)), (1.0, 20.0), strict=True)
    ]
    costs = calibration(*loads).costs(2.0)
    assert costs.turn_seconds == 0.0
    assert 0.001 < costs.request_seconds < 0.002


def test_with_few_rejections_each_counts_as_expensive_as_a_response() -> None:
    few = replace(load(10), refused=100)
    assert calibration(*LOADS, refusing=few).costs(2.0).refuse_seconds == pytest.approx(REQUEST)


def test_batches_longer_than_their_threads_time_are_an_error() -> None:
    wrong = replace(LOADS[0], main_cpu_seconds=1.0, cpu_seconds=1.0)
    with pytest.raises(ValueError, match="is the machine busy"):
        calibration(wrong, *LOADS[1:]).costs(2.0)
    with pytest.raises(ValueError, match="is the machine busy"):
        calibration(*LOADS, refusing=replace(REFUSING, main_cpu_seconds=1.7, cpu_seconds=1.7)).costs(2.0)


def test_written_loads_are_read_unchanged() -> None:
    measured = calibration(*LOADS, largest=112)
    written = asdict(measured) | {"costs": {"cores": 1}}
    assert calibration_of(written) == measured
