"""Which batch sizes give a row the same bits, with computations whose dependence is known."""

import numpy as np
import pytest

from service.onnx.equal_bits import Arrays, CannotCompare, Run, compare_sizes, rows_to_compare

SIZES = (32, 16, 4, 2, 1)
VALUES = 500


def compared(run: Run, seconds: float = 60.0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows = (
        np.random.default_rng(0).normal(size=(rows_to_compare(max(SIZES), VALUES), VALUES)).astype(np.float32)
    )
    return compare_sizes(run, (rows,), 8, SIZES, VALUES, seconds)


def doubled(inputs: Arrays) -> Arrays:
    return (inputs[0] * 2,)


def test_all_sizes_are_equal_if_rows_are_computed_alone() -> None:
    assert compared(doubled) == ((8, *SIZES), ())


def test_sizes_whose_last_bit_differs_are_left_out() -> None:
    def run(inputs: Arrays) -> Arrays:
        (outputs,) = doubled(inputs)
        return (np.nextafter(outputs, np.float32(9)) if len(outputs) in (1, 32) else outputs,)

    assert compared(run) == ((8, 16, 4, 2), (32, 1))


def test_one_row_that_differs_is_enough() -> None:
    def run(inputs: Arrays) -> Arrays:
        (outputs,) = doubled(inputs)
        if len(outputs) == 16:
            outputs[outputs == outputs.max()] += 1
        return (outputs,)

    assert compared(run) == ((8, 32, 4, 2, 1), (16,))


def test_a_fixed_size_in_which_the_place_matters_for_some_rows_cannot_be_compared() -> None:
    """Other sizes must not seem equal because their few rows happen to be."""

    def run(inputs: Arrays) -> Arrays:
        (outputs,) = doubled(inputs)
        if len(outputs) == 8:
            outputs[:4] += inputs[0][:4].astype(np.float64) % 1 < 0.5
        return (outputs,)

    with pytest.raises(CannotCompare):
        compared(run)


@pytest.mark.parametrize("where", [0, -1], ids=["first", "last"])
def test_a_size_in_which_the_place_matters_is_left_out(where: int) -> None:
    def run(inputs: Arrays) -> Arrays:
        (outputs,) = doubled(inputs)
        if len(outputs) == 4:
            outputs[where] += 1
        return (outputs,)

    assert compared(run) == ((8, 32, 16, 2, 1), (4,))


def test_a_model_whose_rows_depend_on_their_neighbours_cannot_be_compared() -> None:
    with pytest.raises(CannotCompare, match="even in batches of 8 rows"):
        compared(lambda inputs: (inputs[0] / np.abs(inputs[0]).max(),))


def test_a_fixed_size_unlike_all_others_is_equal_to_itself() -> None:
    assert compared(lambda inputs: (inputs[0] + (len(inputs[0]) == 8),)) == ((8,), SIZES)


def test_the_first_sizes_are_compared_when_the_time_is_over() -> None:
    assert compared(doubled, seconds=-1) == ((8, 32), ())


def test_a_slow_model_runs_half_as_many_rows_in_whole_batches() -> None:
    ran: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        ran.append(len(inputs[0]))
        return doubled(inputs)

    assert compared(run, seconds=-1) == ((8, 32), ())
    slow = ran.copy()
    ran.clear()
    assert compared(run) == ((8, *SIZES), ())
    assert (slow.count(32), ran.count(32)) == (1, 2)
    assert sum(slow) < sum(ran) / 2


@pytest.mark.parametrize("size", [8, 32], ids=["the fixed size", "another"])
def test_a_slow_model_is_compared_all_the_same(size: int) -> None:
    def run(inputs: Arrays) -> Arrays:
        (outputs,) = doubled(inputs)
        if len(outputs) == size:
            outputs[0] += 1
        return (outputs,)

    if size == 8:
        with pytest.raises(CannotCompare):
            compared(run, seconds=-1)
    else:
        assert compared(run, seconds=-1) == ((8,), (32,))
