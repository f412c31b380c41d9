"""The hardware, versions and commit that a result was measured with."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "loadtests" / "results"
PACKAGES = ("fastapi", "httptools", "numpy", "onnxruntime", "uvicorn", "uvloop")


def describe(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """The hardware, the versions of these packages, the commit, the command and the time."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python " + " ".join(_shown(argument) for argument in sys.orig_argv[1:]),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _shown(argument: str) -> str:
    """An argument without the path of the checkout."""
    return argument.replace(f"{ROOT}/", "")


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    run = subprocess.run(git, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"
