"""One folder's images: read, verified and split into training, validation and test.

What is trusted, and why:

1. The format is always checked: gzip's own checksum, magic number, dimensions, length, labels 0..9.
2. If the folder has a SHA256SUMS, every file must match the sum that it lists.
3. A folder that holds at least one file of a known dataset (by the published digest of its
   decompressed content) counts as that dataset, and then the other three must match as well:
   one corrupt file of MNIST is an error, not a new dataset.
4. A folder with no known file is accepted, with a notice that prints its digests: anyone's 28x28
   images work without a change of code. (Four corrupt files of MNIST would pass here, if each is
   still well formed and no SHA256SUMS lists them; `training.datasets.fetch` always writes one.)
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.datasets.idx import read_idx
from training.datasets.known import (
    FILES,
    KNOWN,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    KnownDataset,
)
from training.errors import DataError
from training.terminal import notice

SUMS_FILE = "SHA256SUMS"
CLASSES = 10
SIDE = 28

# One image in twelve is held out for validation: 5,000 of MNIST's 60,000.
VALIDATION_FRACTION = 12


@dataclass(frozen=True)
class Dataset:
    """Images and their labels: images (n, 28, 28) uint8, ink is 255; labels (n,) int64, 0..9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """One folder's data.

    Every choice is made on `validation`; only evaluation and export read `test`.
    name: the known dataset's name, or "unknown"; labels: the names of the classes.
    digest: SHA-256 over the four files' digests, in the order of FILES.
    """

    name: str
    labels: tuple[str, ...]
    digest: str
    train: Dataset
    validation: Dataset
    test: Dataset


def load(data_dir: Path, known: tuple[KnownDataset, ...] = KNOWN) -> Splits:
    """Read, check and split the four IDX files of a folder, plain or .gz.

    The validation split is the last twelfth of the training file: no seed, so every model and
    every run holds out the same images. Raises DataError.
    """
    contents = {name: _content(data_dir, name) for name in FILES}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    _check_sums(data_dir, digests)
    dataset = _identify(data_dir, digests, known)
    train = _dataset(data_dir, contents, TRAIN_IMAGES, TRAIN_LABELS)
    first_held_out = len(train) - len(train) // VALIDATION_FRACTION
    return Splits(
        name=dataset.name if dataset else "unknown",
        labels=dataset.labels if dataset else tuple(str(label) for label in range(CLASSES)),
        digest=hashlib.sha256("".join(digests[name] for name in FILES).encode()).hexdigest(),
        train=Dataset(train.images[:first_held_out], train.labels[:first_held_out]),
        validation=Dataset(train.images[first_held_out:], train.labels[first_held_out:]),
        test=_dataset(data_dir, contents, TEST_IMAGES, TEST_LABELS),
    )


def spread(rows: int, count: int) -> NDArray[np.int64]:
    """At most `count` row numbers of `rows`, evenly spread, because MNIST's first half is easier."""
    return np.arange(min(rows, count)) * rows // min(rows, count)


def _file(data_dir: Path, name: str) -> Path:
    """The file that holds `name`: plain, or else .gz."""
    for file in (data_dir / name, data_dir / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(
        f"{data_dir / name} is missing, plain or .gz "
        f"(python -m training data --data-dir {data_dir} fetches MNIST)"
    )


def _content(data_dir: Path, name: str) -> bytes:
    file = _file(data_dir, name)
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file: {error}") from error


def _check_sums(data_dir: Path, digests: Mapping[str, str]) -> None:
    """Compare the files with SHA256SUMS, which may list `name` (decompressed) or `name.gz` (as stored)."""
    sums = _read_sums(data_dir / SUMS_FILE)
    for name, digest in digests.items():
        file = _file(data_dir, name)
        if name in sums:
            seen, expected = digest, sums[name]
        elif file.name in sums:
            seen, expected = hashlib.sha256(file.read_bytes()).hexdigest(), sums[file.name]
        else:
            continue
        if seen != expected:
            raise DataError(f"{file}: SHA-256 is {seen}, expected {expected} ({SUMS_FILE})")


def _read_sums(path: Path) -> dict[str, str]:
    """The sums by file name, in the format of `sha256sum`; empty if the file does not exist."""
    sums = {}
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], 1):
        expected, _, name = line.partition(" ")
        if len(expected) != 64 or not name:
            raise DataError(f"{path}:{number}: {line!r}, expected a SHA-256 and a file name")
        sums[name.lstrip(" *").removeprefix("./")] = expected.lower()
    return sums


def _identify(
    data_dir: Path, digests: Mapping[str, str], known: tuple[KnownDataset, ...]
) -> KnownDataset | None:
    for dataset in known:
        wrong = [name for name in FILES if digests[name] != dataset.sha256[name]]
        if not wrong:
            return dataset
        if len(wrong) < len(FILES):
            name = wrong[0]
            raise DataError(
                f"{data_dir / name}: SHA-256 of its content is {digests[name]}, "
                f"expected {dataset.sha256[name]}, because other files here are those of {dataset.name}"
            )
    listing = "".join(f"\n  {digests[name]}  {name}" for name in FILES)
    notice(f"{data_dir} holds no known dataset; using it unverified. SHA-256 of the contents:{listing}")
    return None


def _dataset(data_dir: Path, contents: Mapping[str, bytes], images_name: str, labels_name: str) -> Dataset:
    images_path, labels_path = data_dir / images_name, data_dir / labels_name
    images = read_idx(contents[images_name], 3, str(images_path))
    labels = read_idx(contents[labels_name], 1, str(labels_path))
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{images_path}: images are {images.shape[1:]}, expected {(SIDE, SIDE)}")
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels"
        )
    if len(labels) < VALIDATION_FRACTION:
        raise DataError(f"{labels_path}: {len(labels)} labels, expected at least {VALIDATION_FRACTION}")
    if int(labels.max()) >= CLASSES:
        raise DataError(f"{labels_path}: label {labels.max()}, expected 0..{CLASSES - 1}")
    return Dataset(images, labels.astype(np.int64))
