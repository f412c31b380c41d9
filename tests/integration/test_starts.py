"""How a process starts and ends: SIGHUP never kills it, and a failed start exits with 1."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.live import ROOT, serving


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "models" / "mlp", tmp_path / "mlp")
    return tmp_path


@pytest.mark.parametrize("form", [(), ("--workers", "1")], ids=["one process", "split"])
def test_hangups_reload_and_never_kill(models: Path, form: tuple[str, ...]) -> None:
    with serving("--models-dir", str(models), *form) as service:
        assert service.process.stderr is not None
        for _ in range(20):
            os.kill(service.process.pid, signal.SIGHUP)
        for line in service.process.stderr:
            if "reloaded: nothing has changed" in line:
                break
        service.process.send_signal(signal.SIGTERM)
        while service.process.poll() is None:
            service.process.send_signal(signal.SIGHUP)
            time.sleep(0.001)  # between two signals; nothing is waited for
        rest = service.process.stderr.read()
        assert "Traceback" not in rest
        assert service.process.returncode == 0


def test_hangups_while_models_load_lead_to_reloads_afterwards(models: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "service",
        "--port",
        "0",
        "--models-dir",
        str(models),
        "--log-level",
        "debug",
    ]
    # The flags are read, so Python runs, once the first line is logged.
    command += ["--max-queue-delay-seconds", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "deprecated" in process.stderr.readline()
        for _ in range(5):
            process.send_signal(signal.SIGHUP)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "reloaded" in line:
                break
        assert any("ready at" in line for line in lines) or "reloaded" in lines[-1]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0
        assert "reloaded" not in rest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--default-classifier", "nosuch"), "default_classifier is 'nosuch'"),
        (("--default-classifier", "nosuch", "--workers", "1"), "default_classifier is 'nosuch'"),
        (("--host", "192.0.2.1"), "192.0.2.1"),
        (("--provider", "cuda", "--device-id", "99"), "provider cuda"),
    ],
)
def test_a_failed_start_exits_with_1(models: Path, flags: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "service", "--models-dir", str(models), "--port", "0", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
