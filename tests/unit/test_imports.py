"""Rules on imports that the contracts in pyproject.toml ([tool.importlinter], `make lint`) cannot express."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

ROOT = Path(__file__).parents[2]
FAST = ROOT / "service" / "http" / "fast"
INTERNALS = frozenset(f"uvicorn.{module.name}" for module in pkgutil.iter_modules(uvicorn.__path__))


def names_of(file: Path) -> Iterator[str]:
    """The dotted names that `file` imports, or reaches from a module that it imported whole."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def internals_in(file: Path) -> set[str]:
    return {name for name in names_of(file) if ".".join(name.split(".")[:2]) in INTERNALS}


def test_uvicorns_internals_stay_inside_the_fast_path() -> None:
    """import-linter knows another project's package only as a whole."""
    files = [file for file in (ROOT / "service").rglob("*.py") if not file.is_relative_to(FAST)]
    assert len(files) > 40
    assert not {file: found for file in files if (found := internals_in(file))}


def test_the_fast_path_imports_uvicorns_internals() -> None:
    """If this fails, uvicorn's upper bound in pyproject.toml has lost its reason."""
    assert set().union(*map(internals_in, FAST.glob("*.py")))


# What an import really loads, with the packages' __init__ files, which the contracts do not follow.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("service.split.worker", ("onnxruntime", "service.onnx", "service.serving.local")),
        ("service.split.engine_server, service.serving.local", ("fastapi", "service.http", "uvicorn")),
        ("service.split.supervisor", ("fastapi", "onnxruntime", "service.http", "uvicorn")),
        (
            "service.http.app, service.split.worker, service.split.engine_server, service.serving.local, "
            "service.__main__",
            ("opentelemetry.sdk", "service.observability.tracing", "torch", "training"),
        ),
    ],
    ids=["worker", "engine", "supervisor", "service"],
)
def test_a_process_loads_only_what_its_role_needs(modules: str, unwanted: tuple[str, ...]) -> None:
    script = (
        f"import sys, {modules}\n"
        f"print([name for name in sys.modules if any(\n"
        f"    name == each or name.startswith(each + '.') for each in {unwanted}\n"
        f")])"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"


def test_no_test_imports_another_test() -> None:
    """What several tests need lies in tests/support."""
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 80
    assert not {
        file: found
        for file in files
        if (found := {name for name in names_of(file) if name.startswith("tests.") and ".test_" in name})
    }
