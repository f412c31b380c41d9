"""Which training images each client holds. Knows neither torch nor Flower."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

Split = Literal["iid", "by-label"]

LABELS_PER_CLIENT = 2


def clients_rows(labels: NDArray[np.int64], clients: int, split: Split, seed: int) -> list[NDArray[np.int64]]:
    """The row numbers of each client, all of the same length; a few rows are left over.

    "iid" deals the rows at random. "by-label" is the pathological split of McMahan et al. 2017, section 3:
    the rows are sorted by label and cut into two shards per client, and each client gets two of them, so that
    most clients see two labels. Raises DataError if there are fewer rows than shards.
    """
    rng = np.random.default_rng(seed)
    shards = clients * LABELS_PER_CLIENT
    size = len(labels) // shards
    if size == 0:
        raise DataError(f"{len(labels)} images, expected at least {shards} for {clients} clients")
    order = rng.permutation(len(labels))
    if split == "by-label":
        order = order[np.argsort(labels[order], kind="stable")]
    cut = order[: size * shards].reshape(shards, size)
    dealt = rng.permutation(shards).reshape(clients, LABELS_PER_CLIENT)
    return [np.concatenate(cut[each]) for each in dealt]
