"""How long batches are expected to take, once some have run."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.batch_seconds import FASTER, BatchSeconds

MOST = 8
times = st.lists(st.floats(0.001, 10), min_size=MOST, max_size=MOST)


@given(times, st.lists(st.tuples(st.integers(1, MOST), st.floats(0.0001, 20))))
def test_a_batch_is_expected_to_take_the_shortest_time_that_it_or_a_larger_one_took(
    warm: list[float], seen: list[tuple[int, float]]
) -> None:
    seconds = BatchSeconds(lambda rows: warm[rows - 1], MOST)
    for rows, took in seen:
        seconds.learn(rows, took)
    expected = [
        min([*warm[rows - 1 :], *(took for larger, took in seen if larger >= rows)])
        for rows in range(1, MOST + 1)
    ]
    assert [seconds.of(rows) for rows in range(1, MOST + 1)] == expected
    assert all(fewer <= more for fewer, more in itertools.pairwise(expected))
    assert seconds.below[1:] == pytest.approx([FASTER * each for each in expected])
