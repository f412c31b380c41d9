"""Ctrl-C on each long command of loadtests: one line, exit code 130, no server left, no file half-written."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.models import add_reader

ROOT = Path(__file__).parents[2]
wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing")

COMMANDS = [
    pytest.param("loadtests.load", "--rate 20 --mix raw=1", "All users spawned", id="load"),
    pytest.param("loadtests.capacity", "measure --model template --seconds 0.5", "callers:", id="capacity"),
    pytest.param(
        "loadtests.simulation.check", "--model template --calibrate-seconds 0.5", "callers:", id="check"
    ),
    pytest.param("loadtests.open_loop", "--model template --seconds 1", "generator: at most", id="open_loop"),
    pytest.param("loadtests.gpu", "--provider cpu --max-batch-size 1 --seconds 15", ", 10 s", id="gpu"),
    pytest.param("loadtests.peers", "--only asgi --rounds 2", "round 1", id="peers", marks=wrk),
]


def published() -> dict[Path, int]:
    """When each published result was written."""
    folders = (ROOT / "loadtests" / "results", ROOT / "docs")
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


# Python code follows each sign for a while: an extension module that calls back into Python may discard the
# KeyboardInterrupt, as happened once in 70 tries while a benchmark opened its first onnxruntime session.


def interrupt(module: str, arguments: list[str], sign: str) -> tuple[int, str]:
    """Start a command and press Ctrl-C when its stderr shows the sign: (exit code, stderr after that)."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        watchdog = threading.Timer(100, process.terminate)
        watchdog.start()
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if sign in line:
                break
        assert sign in seen, seen
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait()
        watchdog.cancel()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    return code, rest


@pytest.mark.parametrize(("module", "arguments", "sign"), COMMANDS)
def test_ctrl_c_ends_a_command_with_one_line(
    tmp_path: Path, add_generator: Callable[..., Path], module: str, arguments: str, sign: str
) -> None:
    add_reader(tmp_path)
    add_generator()
    flags = [] if module == "loadtests.peers" else ["--models-dir", str(tmp_path)]
    before = published()
    code, rest = interrupt(module, [*arguments.split(), *flags], sign)
    assert code == 130
    *others, last = rest.strip().splitlines()
    assert last.startswith("loadtests: interrupted")
    assert "Traceback" not in rest
    assert not [line for line in others if "ERROR" in line]
    assert published() == before


@wrk
@pytest.mark.nightly
def test_ctrl_c_ends_every_service_of_the_fast_path_benchmark() -> None:
    code, rest = interrupt("loadtests.fast_path", [], "slice 1 of 4")
    assert (code, rest.strip()) == (130, "loadtests: interrupted")


def test_ctrl_c_ends_the_scenarios(tmp_path: Path) -> None:
    output = tmp_path / "scaling"
    code, rest = interrupt(
        "loadtests.simulation.scaling", ["--output", str(output)], "latencies at steady load"
    )
    assert code == 130
    assert rest.strip().endswith("loadtests: interrupted")
    assert not output.exists()
