"""The commands that made the shipped models, and the pages' commands that CI does not run, are accepted."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.console import read_blocks
from tests.support.live import ROOT
from training.__main__ import family_of, parser

RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >> "$RECORD"
printf '\\n' >> "$RECORD"
"""


def scripts() -> dict[str, str]:
    """Blocks of pages that CI does not run, and the commands of the manifests, by where they stand."""
    found = {}
    for page in (ROOT / "models" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in read_blocks(page.read_text()):
            lines = [line[2:] for line in block.lines if line.startswith(("$ ", "> ", "  "))]
            if block.info == "console norun" and any("-m training " in line for line in lines):
                found[f"{page.relative_to(ROOT)}:{block.line}"] = "\n".join(lines)
    for path in sorted((ROOT / "models").glob("*/*/manifest.json")):
        found[str(path.relative_to(ROOT))] = json.loads(path.read_text())["command"]
    return found


def trainings(script: str, folder: Path) -> list[list[str]]:
    """The arguments of every `-m training` that a script starts. The shell finds no program but Python."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "torchrun"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    record = folder / "record"
    environment = {"PATH": str(programs), "RECORD": str(record)}
    shell = ["/bin/bash", "-c", script]
    subprocess.run(shell, cwd=folder, env=environment, capture_output=True, check=False, timeout=10)
    calls = [call.split("\0")[:-1] for call in record.read_text().splitlines()]
    return [call[call.index("training") + 1 :] for call in calls if "training" in call]


SCRIPTS = scripts()


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_arguments_and_hyperparameters_are_accepted(script: str, tmp_path: Path) -> None:
    """Those of a published model may have been refused since: a name that changed, a value without effect."""
    found = trainings(script, tmp_path)
    assert found
    for arguments in found:
        options = parser().parse_args(arguments)
        if "set" in options:
            family_of(getattr(options, "model", "private"), options.set or [])
