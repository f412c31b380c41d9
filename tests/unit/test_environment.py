""".ci/environment makes environments, and leaves what is not its own as it was."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".ci" / "environment"
LOCKER = ROOT / ".cache" / "uv" / "bin"
"""Where the Makefile installs uv."""


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_environment_has_what_it_was_asked_for_and_pip(tmp_path: Path, installer: str) -> None:
    uv = shutil.which("uv", path=f"{os.environ['PATH']}{os.pathsep}{LOCKER}")
    if installer == "uv" and uv is None:
        pytest.skip("there is no uv")
    path = [part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "uv").exists()]
    if installer == "uv":
        assert uv is not None
        path.insert(0, str(Path(uv).parent))
    made = subprocess.run(
        [ENVIRONMENT, tmp_path / "new", ".develop", "hatchling: 2 MB, 10 s", "hatchling"],
        cwd=ROOT,
        env=os.environ | {"PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert made.returncode == 0, made.stderr
    python = tmp_path / "new" / "bin" / "python"
    subprocess.run([python, "-c", "import hatchling, pip"], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_an_environment_that_is_a_link_to_another_one_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / ".develop").touch()
    (tmp_path / "link").symlink_to(other)
    made = subprocess.run(
        [ENVIRONMENT, tmp_path / "link", ".develop", "nothing: 0 MB, 0 s", "pip"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 1
    assert f"is a link to {other}" in made.stderr
    assert (other / ".develop").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other"]
