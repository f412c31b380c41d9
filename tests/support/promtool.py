"""Prometheus's promtool, which evaluates rules and expressions on invented series."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool") and not os.environ.get("CI"),
    reason="promtool is missing: Debian's package prometheus has it",
)


def promtool(*arguments: str | Path) -> str:
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
