"""How a process starts and ends: SIGHUP never kills it, and a failed start exits with 1."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


STEP_SECONDS = 0.001


@contextmanager
def hanging_up(pids: Callable[[], list[int]]) -> Iterator[dict[int, int]]:
    """Send SIGHUP to these processes at each step; yields how many were sent to each."""
    sent: dict[int, int] = {}
    over = threading.Event()

    def run() -> None:
        while not over.wait(STEP_SECONDS):
            for pid in pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
                    sent[pid] = sent.get(pid, 0) + 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()


def lines_until_ready(stderr: Iterable[str]) -> list[str]:
    lines = []
    for line in stderr:
        lines.append(line)
        if "ready at" in line:
            return lines
    pytest.fail(f"the service was not ready: {lines}")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ignores_hangups(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", status)
    return bool(int(ignored, 16) >> (signal.SIGHUP - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hangups_never_kill_a_process_that_the_supervisor_starts(models: Path) -> None:
    command = [sys.executable, "-m", "service", "--models-dir", str(models), "--workers", "2", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        with hanging_up(lambda: children(process.pid)) as sent:
            lines = lines_until_ready(process.stderr)
            assert sorted(sent) == children(process.pid)  # none was restarted
            assert len(sent) == 3
            assert min(sent.values()) > 10
        assert "SIGHUP" not in "".join(lines)
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the image's command is Linux's")
def test_hangups_never_kill_the_images_command(models: Path) -> None:
    """In the image env, the first step of the command, is PID 1, which the kernel protects; not here."""
    (entrypoint,) = re.findall(
        r'^ENTRYPOINT (\[.*"service"\])$', (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    command = [sys.executable if word == "python3" else word for word in json.loads(entrypoint)]
    command += ["--models-dir", str(models), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        until = time.monotonic() + 60
        while not ignores_hangups(process.pid):
            assert time.monotonic() < until
        with hanging_up(lambda: [process.pid]) as sent:
            lines_until_ready(process.stderr)
            assert sent[process.pid] > 10
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 0


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
