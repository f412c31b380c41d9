"""The scanner of models folders: which names count as models and as versions."""

from pathlib import Path

import pytest

from service.errors import RepositoryError
from service.models.folder import Scan, latest_version, model_folders, scan, version_folders
from service.models.manifest import MANIFEST_FILE


def make(models_dir: Path, *versions: str) -> None:
    for version in versions:
        (models_dir / version).mkdir(parents=True)


def test_hidden_folders_and_files_are_no_models(tmp_path: Path) -> None:
    make(tmp_path, "b/1", "a/1", ".export-x/c/1", "_aside/1")
    (tmp_path / "README.md").write_text("not a model")
    assert [model.name for model in model_folders(tmp_path)] == ["a", "b"]


def test_versions_are_ordered_as_numbers(tmp_path: Path) -> None:
    make(tmp_path, "10", "9", "2")
    assert list(version_folders(tmp_path)) == [2, 9, 10]
    assert latest_version(tmp_path) == tmp_path / "10"


@pytest.mark.parametrize("name", ["0", "007", "-1", "1.5", "1a", "v1", "٣", ".1"])
def test_name_that_is_no_positive_number_is_no_version(name: str, tmp_path: Path) -> None:
    make(tmp_path, "1", name)
    assert list(version_folders(tmp_path)) == [1]


def test_file_named_like_a_version_is_no_version(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a file")
    assert version_folders(tmp_path) == {}


def test_versions_can_be_restricted_to_those_that_hold_a_file(tmp_path: Path) -> None:
    make(tmp_path, "1", "2")
    (tmp_path / "1" / MANIFEST_FILE).write_text("{}")
    assert list(version_folders(tmp_path, holding=MANIFEST_FILE)) == [1]
    assert latest_version(tmp_path, holding=MANIFEST_FILE) == tmp_path / "1"


def test_a_model_without_versions_is_an_error_only_if_one_is_needed(tmp_path: Path) -> None:
    make(tmp_path, "empty/x")
    assert version_folders(tmp_path / "empty") == version_folders(tmp_path / "missing") == {}
    assert scan(tmp_path) == Scan({})
    with pytest.raises(RepositoryError, match=r"expected missing/1/manifest\.json or the like"):
        latest_version(tmp_path / "missing", holding=MANIFEST_FILE)


def test_every_version_is_found(tmp_path: Path) -> None:
    make(tmp_path, "a/1", "a/3", "b/2")
    assert scan(tmp_path).keys() == {("a", 1), ("a", 3), ("b", 2)}


def test_missing_models_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"models folder .*none is missing"):
        model_folders(tmp_path / "none")
