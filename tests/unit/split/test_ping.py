"""The ping of an exec probe, against a real engine process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.split import ping
from tests.support.live import ROOT


@contextmanager
def engine(models_dir: Path, path: Path) -> Iterator[subprocess.Popen[str]]:
    """An engine that is ready."""
    flags = ["--socket", str(path), "--models-dir", str(models_dir)]
    command = [sys.executable, "-m", "service", "engine", *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("the engine is ready" in line for line in process.stderr)
        try:
            yield process
        finally:
            process.kill()


def run_ping(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.split.ping", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_an_engine_answers_until_it_hangs_or_ends(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    path = tmp_path / "engine.sock"
    missing = run_ping(path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"{path}: [Errno 2] No such file or directory\n"
    with engine(tmp_path, path) as process:
        assert (run_ping(path).returncode, run_ping(path).stderr) == (0, "")
        os.kill(process.pid, signal.SIGSTOP)  # it still listens, as a hung one does
        with pytest.raises(TimeoutError):
            ping.ping(str(path), timeout_seconds=0.2)
        process.kill()
        process.wait()
        assert path.is_socket()
        assert "Connection refused" in run_ping(path).stderr


def test_whoever_hangs_up_has_not_answered(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-m", "service.split.ping", str(path)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100)
            assert process.stderr is not None
            assert process.stderr.read() == f"{path}: the engine closed the connection\n"
            assert process.wait() == 1


def test_it_loads_nothing_of_the_service_and_no_event_loop() -> None:
    script = "import sys, service.split.ping; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = ended.stdout.split()
    assert {name for name in loaded if name.startswith("service")} == {
        "service",
        "service.split",
        "service.split.ping",
    }
    assert not {"asyncio", "numpy", "orjson", "pydantic"} & set(loaded)
