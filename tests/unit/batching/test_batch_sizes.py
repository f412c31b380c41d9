"""How large a batch may be for the time that one takes."""

import pytest

from service.batching.batch_sizes import LOW_SECONDS, MIXED_BATCH_SECONDS, MIXED_ROWS, low_rows, mixed_rows


@pytest.mark.parametrize(
    ("row_seconds", "most", "rows"),
    [
        (MIXED_BATCH_SECONDS / 50, 256, 50),
        (MIXED_BATCH_SECONDS / 5, 256, MIXED_ROWS),  # a slow model
        (MIXED_BATCH_SECONDS / 5, 8, 8),
        (MIXED_BATCH_SECONDS / 1000, 256, 256),  # a fast one, as on a GPU: nothing is cut
    ],
)
def test_mixed_batches_fit_the_time_but_are_not_tiny(row_seconds: float, most: int, rows: int) -> None:
    assert mixed_rows(lambda count: count * row_seconds, most) == rows


@pytest.mark.parametrize(
    ("row_seconds", "rows"), [(LOW_SECONDS / 5, 5), (LOW_SECONDS * 3, 1), (LOW_SECONDS / 1000, 256)]
)
def test_rows_of_low_priority_fit_their_time(row_seconds: float, rows: int) -> None:
    assert low_rows(lambda count: count * row_seconds, 256) == rows
