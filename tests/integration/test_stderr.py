"""The service when stderr and stdout are closed, full or read by nobody."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import ROOT, connected

FORMS = pytest.mark.parametrize(
    "workers", ["0", pytest.param("1", marks=pytest.mark.slow)], ids=["one process", "split"]
)
PIPE_BYTES = 4096
REQUESTS = 300
"""Their access lines are many times what fits into such a pipe."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def target_of(pid: int, fd: int) -> str:
    return str(Path(f"/proc/{pid}/fd/{fd}").readlink())


@contextmanager
def started(models: Path, *flags: str, redirect: str = "", **streams: Any) -> Iterator[tuple[int, int]]:
    """Start the service through a shell that may redirect its streams; yields its port and process id."""
    port = free_port()
    arguments = (sys.executable, "-m", "service", "--models-dir", str(models), "--port", str(port), *flags)
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *arguments]
    with subprocess.Popen(command, cwd=ROOT, **streams) as process:
        try:
            yield port, process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


async def answers(port: int, requests: int = 1) -> None:
    """Wait until the service is ready, then send requests on both paths; all are answered with 200."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with connected(port) as connection:
                    if (await connection.ask("GET", "/v2/health/ready")).status == 200:
                        break
            except OSError:
                await asyncio.sleep(0.05)
        async with connected(port) as connection:
            for _ in range(requests):
                assert (await connection.ask("POST", "/classify", bytes(784))).status == 200
                assert (await connection.ask("GET", "/v2/health/live")).status == 200


@pytest.mark.timeout(120)
@FORMS
async def test_a_stderr_that_nobody_reads_stops_nothing(
    add_classifier: Callable[..., Path], tmp_path: Path, workers: str
) -> None:
    add_classifier()
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    assert os.write(writing, b"x" * PIPE_BYTES) == PIPE_BYTES  # it is full from the start
    with started(tmp_path, "--access-log", "--workers", workers, stderr=writing) as (port, _):
        await answers(port, REQUESTS)
    os.close(reading)
    os.close(writing)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("redirect", "workers"),
    [
        ("2>&- >&- <&-", "0"),
        pytest.param("2>&- >&- <&-", "1", marks=pytest.mark.slow),
        ("2>/dev/full >/dev/full", "0"),
        pytest.param(">&-", "0", marks=pytest.mark.slow),
    ],
)
async def test_closed_and_full_streams_stop_nothing(
    add_classifier: Callable[..., Path], tmp_path: Path, redirect: str, workers: str
) -> None:
    add_classifier()
    with started(tmp_path, "--access-log", "--workers", workers, redirect=redirect) as (port, pid):
        await answers(port)
        for fd in (1, 2):
            assert not target_of(pid, fd).startswith(("socket:", "anon_inode:"))


@pytest.mark.timeout(120)
async def test_a_reader_of_stderr_that_goes_stops_nothing(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    reading, writing = os.pipe()
    with started(tmp_path, "--access-log", stderr=writing, stdout=writing) as (port, _):
        os.close(writing)
        await answers(port)
        os.close(reading)
        await answers(port, 20)
