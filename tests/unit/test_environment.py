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


def without_uv(path: str, folder: Path) -> str:
    """Return the PATH without uv: of a folder that has it, links to the other programs take its place."""
    parts = []
    for number, part in enumerate(path.split(os.pathsep)):
        if not (Path(part) / "uv").exists():
            parts.append(part)
            continue
        links = folder / str(number)
        links.mkdir(parents=True)
        for program in Path(part).iterdir():
            if program.name != "uv":
                (links / program.name).symlink_to(program)
        parts.append(str(links))
    return os.pathsep.join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_environment_has_what_it_was_asked_for_and_pip(tmp_path: Path, installer: str) -> None:
    path = os.environ["PATH"]
    uv = shutil.which("uv", path=f"{path}{os.pathsep}{LOCKER}")
    if installer == "pip":
        path = without_uv(path, tmp_path / "programs")
    elif uv is None:
        pytest.skip("there is no uv")
    else:
        path = f"{Path(uv).parent}{os.pathsep}{path}"
    folder = tmp_path / "environments"
    made = subprocess.run(
        [ENVIRONMENT, folder / "new", ".develop", "hatchling: 2 MB, 10 s", "hatchling"],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert made.returncode == 0, made.stderr
    python = folder / "new" / "bin" / "python"
    subprocess.run([python, "-c", "import hatchling, pip"], check=True, timeout=60)
    assert [each.name for each in folder.iterdir()] == ["new"]


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
