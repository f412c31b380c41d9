"""wrk's script: without a body it must not report a rate."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loadtests.wrk import SCRIPT

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing")


@pytest.mark.parametrize(
    ("body_file", "message"),
    [(None, "BODY_FILE is not set"), ("missing", "BODY_FILE cannot be read: ")],
)
def test_without_a_body_wrk_sends_nothing_and_fails(
    tmp_path: Path, body_file: str | None, message: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BODY_FILE"}
    if body_file is not None:
        environment["BODY_FILE"] = str(tmp_path / body_file)
    command = ["wrk", "-t1", "-c1", "-d1s", "-s", str(SCRIPT), "http://127.0.0.1:9/"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert f"post.lua: {message}" in run.stderr
    assert "requests" not in run.stdout.lower()
