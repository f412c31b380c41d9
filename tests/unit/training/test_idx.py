import contextlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.idx_files import idx
from training.datasets.idx import read_idx
from training.errors import DataError


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 255))
def test_read_idx_gives_back_what_was_written(shape: list[int], value: int) -> None:
    array = np.full(shape, value, np.uint8)
    np.testing.assert_array_equal(read_idx(idx(array), len(shape), "file"), array)


@given(st.binary(max_size=64), st.integers(1, 3))
def test_read_idx_raises_only_data_error(content: bytes, dimensions: int) -> None:
    with contextlib.suppress(DataError):
        assert read_idx(content, dimensions, "file").ndim == dimensions
