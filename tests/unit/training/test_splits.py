import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.idx_files import digests, idx, known, patterns, write_folder
from training.datasets.known import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
)
from training.datasets.splits import SUMS_FILE, load, spread
from training.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def test_last_twelfth_of_the_training_file_is_held_out(folder: Path) -> None:
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
    assert "holds no known dataset" in said
    assert all(digest in said for digest in digests(folder).values())


def test_known_data_is_loaded_without_a_notice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = load(folder, known=known(folder))
    assert (splits.name, splits.labels) == ("bars", tuple("abcdefghij"))
    assert capsys.readouterr().err == ""


def test_wrong_file_of_known_data_is_named(folder: Path) -> None:
    expected = known(folder)
    (folder / TEST_LABELS).write_bytes(idx(np.zeros(60, np.uint8)))
    with pytest.raises(DataError, match=f"{TEST_LABELS}.*expected {expected[0].sha256[TEST_LABELS]}"):
        load(folder, known=expected)


@pytest.mark.parametrize("packed", [False, True])
def test_sha256sums_are_verified_for_plain_and_packed_files(tmp_path: Path, packed: bool) -> None:
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
def test_malformed_file_is_named(
    folder: Path, name: str, content: Callable[[bytes], bytes], message: str
) -> None:
    path = folder / name
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert name in str(caught.value)


def test_too_few_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="11 labels, expected at least 12"):
        load(write_folder(tmp_path, train=11))


def test_missing_file_names_the_command_that_fetches_it(folder: Path) -> None:
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


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (7, 3, [0, 2, 4]), (4, 4, [0, 1, 2, 3])],
)
def test_rows_are_spread_evenly(rows: int, count: int, expected: list[int]) -> None:
    assert spread(rows, count).tolist() == expected
