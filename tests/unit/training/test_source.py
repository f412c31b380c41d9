import subprocess
from pathlib import Path

import pytest

from training.runs.source import commit_of


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    git(tmp_path, "tag", "v1")
    return tmp_path


def test_a_clean_checkout_gives_its_commit(checkout: Path) -> None:
    assert commit_of(checkout / "code.py") == git(checkout, "rev-parse", "HEAD")


def test_a_changed_file_makes_it_dirty(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 2\n")
    assert commit_of(checkout / "code.py") == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_package_installed_inside_a_checkout_has_no_commit(checkout: Path) -> None:
    (checkout / "installed.py").write_text("")
    assert commit_of(checkout / "installed.py") is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout / "code.py") is None


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "code.py").write_text("")
    assert commit_of(tmp_path / "code.py") is None
