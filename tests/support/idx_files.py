"""Small IDX files made on the spot: ten class-dependent patterns, so that a network can learn them."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.datasets.known import (
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    KnownDataset,
)


def idx(array: NDArray[np.uint8]) -> bytes:
    """The array as the bytes of an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def patterns(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (count, 28, 28) and labels (count,): a bright bar at a row of its class, and noise."""
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = np.random.default_rng(seed).integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label, 4:24] = 255
    return images, labels


def write_folder(folder: Path, train: int = 240, test: int = 60, packed: bool = False, seed: int = 0) -> Path:
    """Write the four files of a data set, plain or .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, count, part in (
        ((TRAIN_IMAGES, TRAIN_LABELS), train, 1),
        ((TEST_IMAGES, TEST_LABELS), test, 2),
    ):
        for name, array in zip(names, patterns(count, 2 * seed + part), strict=True):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each of the four plain files in folder."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def known(folder: Path) -> tuple[KnownDataset, ...]:
    """A list of known data sets whose one entry is the one in folder, named bars."""
    return (KnownDataset("bars", tuple("abcdefghij"), digests(folder)),)
