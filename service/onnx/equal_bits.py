"""Finds the batch sizes in which a row's outputs have the same bits, by running the same rows in each.

Knows nothing of sessions, buckets or threads.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from service.models.tensors import Array

Arrays = tuple[Array, ...]
Run = Callable[[Arrays], Arrays]
"""Computes a batch of exactly as many rows as its arrays have. Returns arrays of as many rows."""

COMPARED_VALUES = 25_000
COMPARED_BATCHES = 2
"""At least this many values of the outputs, and batches, are compared for each size. Floats that are summed
in another order differ nearly everywhere. But kernels that compute several floats at once may treat a
tensor's last ones differently, and then few values differ. For a slow model one batch and half as many values
have to do."""


class CannotCompare(Exception):
    """Batch sizes cannot be compared with the fixed one."""


class Compared(NamedTuple):
    """Batch sizes by whether a row has the same bits in them as in the fixed size, which comes first."""

    equal: tuple[int, ...]
    differing: tuple[int, ...]


def compare_sizes(
    run: Run, inputs: Arrays, fixed: int, sizes: Sequence[int], values: int, seconds: float
) -> Compared:
    """Compare batch sizes with the size `fixed`, in their order.

    inputs: random rows, `rows_to_compare` of the largest size. The rows of a batch have other places and
        other neighbours than in the batches of `fixed` rows that they are compared with.
    values: of the outputs, in each row.
    seconds: after this long a comparison ends with half of its rows, and only the fixed size and the first of
        the others are still compared.
    Raises CannotCompare if a row's bits depend on its place or its neighbours even in the fixed size.
    """
    ends = time.perf_counter() + seconds
    expected: dict[int, bytes] = {}

    def bits_of(row: int) -> bytes:
        if row not in expected:
            expected.update(_batch(run, inputs, fixed, row - row % fixed))
        return expected[row]

    def is_equal(size: int) -> bool:
        rows = rows_to_compare(size, values)
        for done in range(0, rows, size):
            if 2 * done >= rows and time.perf_counter() > ends:
                break
            batch = _batch(run, inputs, size, 1 + size // 2 + done)
            if any(bits != bits_of(row) for row, bits in batch.items()):
                return False
        return True

    if not is_equal(fixed):
        raise CannotCompare(
            f"a row's bits depend on its place or on the rest of its batch, even in batches of {fixed} rows, "
            "and would not with fixed_batch_size 1"
        )
    equal: list[int] = [fixed]
    differing: list[int] = []
    for size in sizes:
        (equal if is_equal(size) else differing).append(size)
        if time.perf_counter() > ends:
            break
    return Compared(tuple(equal), tuple(differing))


def rows_to_compare(size: int, values: int) -> int:
    """Return how many rows are compared for a batch size. values: of the outputs, in each row."""
    return max(COMPARED_BATCHES * size, math.ceil(COMPARED_VALUES / values))


def _batch(run: Run, inputs: Arrays, size: int, first: int) -> dict[int, bytes]:
    """Run a batch of `size` rows; returns their outputs' bits by their numbers.

    first: the row that it begins with; the rows after the last are the first ones again.
    """
    chosen = np.arange(first, first + size) % len(inputs[0])
    outputs = run(tuple(array[chosen] for array in inputs))
    return {
        row: b"".join(output[place].tobytes() for output in outputs)
        for place, row in enumerate(chosen.tolist())
    }
