"""How long batches are expected to take, once some have run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.batch_seconds import FASTER, BatchSeconds
from service.batching.batch_sizes import MIXED_BATCH_SECONDS, mixed_rows

MOST = 8
times = st.lists(st.floats(0.001, 10), min_size=MOST, max_size=MOST)


@given(times, st.lists(st.tuples(st.integers(1, MOST), st.floats(0.0001, 20))))
def test_a_batch_is_expected_to_take_the_shortest_time_in_which_its_rows_ran(
    warm: list[float], seen: list[tuple[int, float]]
) -> None:
    """In one batch of at least as many rows, or in several of one size."""
    seconds = BatchSeconds(lambda rows: warm[rows - 1], range(1, MOST + 1))
    for rows, took in seen:
        seconds.learn(rows, took)
    ran = [*enumerate(warm, 1), *seen]
    expected = [min(math.ceil(rows / size) * took for size, took in ran) for rows in range(1, MOST + 1)]
    assert [seconds.of(rows) for rows in range(1, MOST + 1)] == pytest.approx(expected)
    assert all(seconds.of(rows) <= seconds.of(rows + 1) for rows in range(1, MOST))
    assert seconds.below[1:] == pytest.approx([FASTER * each for each in expected])


def test_padding_counts_as_rows() -> None:
    sizes = 4, 8, 16, 64
    seconds = BatchSeconds(lambda rows: float(next(size for size in sizes if size >= rows)), sizes)
    seconds.learn(5, 0.5)
    assert [seconds.of(rows) for rows in (1, 8, 9, 16, 17, 64)] == [0.5, 0.5, 1.0, 1.0, 4.0, 4.0]


@given(
    fixed=st.floats(1e-6, 0.01),
    each=st.floats(1e-7, 0.001),
    sizes=st.sets(st.integers(1, 255), max_size=6),
    slower=st.lists(st.floats(1, 100), min_size=7, max_size=7),
)
def test_a_disturbed_warm_up_does_not_keep_batches_small_for_good(
    fixed: float, each: float, sizes: set[int], slower: list[float]
) -> None:
    """Beside small requests only batches of `mixed_rows` rows run. They grow until they take their time."""
    most = 256
    buckets = (*sorted(sizes), most)
    factors = dict(zip(buckets, slower, strict=False))

    def bucket_for(rows: int) -> int:
        return next(size for size in buckets if size >= rows)

    def took(rows: int) -> float:
        return fixed + each * bucket_for(rows)

    seconds = BatchSeconds(lambda rows: factors[bucket_for(rows)] * took(rows), buckets)
    rows = 0
    while rows < (rows := mixed_rows(seconds.of, most)):
        seconds.learn(rows, took(rows))
    assert rows == most or math.ceil(bucket_for(rows + 1) / rows) * took(rows) > MIXED_BATCH_SECONDS
