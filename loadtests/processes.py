"""Servers under test: start them, wait for them, measure them, and stop them with all of their children."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "LOADTESTS_SERVER"
"""An environment variable that all of a server's processes inherit, even if they detach themselves."""

POLL_SECONDS = 0.005
START_SECONDS = 120.0
STOP_SECONDS = 10.0


class ServerFailed(Exception):
    """The server exited or never answered correctly; the message ends with its last output."""


@dataclass(frozen=True)
class Memory:
    """Memory of all of a server's processes. rss_bytes counts shared pages in each, pss_bytes once."""

    rss_bytes: int
    pss_bytes: int
    processes: int


@dataclass(frozen=True)
class Server:
    """A running server.

    cold_start_seconds: from starting the process to the first correct response.
    process: the one that was started; `processes` has its children too.
    """

    mark: str
    cold_start_seconds: float
    process: "subprocess.Popen[bytes]"

    def processes(self) -> list[psutil.Process]:
        """The server's processes that are alive now."""
        return _alive(self.mark)

    def cpu_seconds(self) -> float:
        """User and system time of its processes so far."""
        return float(sum(sum(process.cpu_times()[:2]) for process in self.processes()))

    def page_faults(self) -> int:
        """Page faults of its processes so far that needed no disk; see proc_pid_stat(5). Linux only."""
        return sum(_page_faults(process.pid) for process in self.processes())

    def memory(self) -> Memory:
        """Memory in use now."""
        infos = [info for process in self.processes() if (info := _memory_of(process))]
        return Memory(sum(info.rss for info in infos), sum(info.pss for info in infos), len(infos))


@contextmanager
def serving(
    command: Sequence[str],
    ready: Callable[[], bool],
    *,
    directory: Path,
    environment: Mapping[str, str],
    start_seconds: float = START_SECONDS,
) -> Iterator[Server]:
    """Start a server, wait until it answers correctly, and stop all of its processes after the block.

    ready: returns whether the server answers correctly; OSError means not yet.
    environment: variables in addition to this process's own.
    Raises ServerFailed if it exits before that, or is not ready after `start_seconds`.
    """
    mark = uuid.uuid4().hex
    variables = {**os.environ, **environment, MARK: mark}
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(command),
            cwd=directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not _answers(ready):
                if process.poll() is not None:
                    raise ServerFailed(f"exited with code {process.returncode}: {_tail(output.fileno())}")
                if time.monotonic() - started > start_seconds:
                    raise ServerFailed(
                        f"no correct response in {start_seconds:g} s: {_tail(output.fileno())}"
                    )
                time.sleep(POLL_SECONDS)
            yield Server(mark, time.monotonic() - started, process)
        finally:
            _stop(process, mark)


def _answers(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except OSError:
        return False


def terminate(process: "subprocess.Popen[Any]", seconds: float) -> None:
    """Send SIGTERM to a process, and kill it if it has not exited after this many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def end_servers_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that `serving` stops the servers."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _page_faults(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0  # it has exited
    return int(stat.rpartition(")")[2].split()[7])


def _alive(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has exited, or belongs to another user
            continue
    return found


def _memory_of(process: psutil.Process) -> Any:
    try:
        return process.memory_full_info()
    except psutil.Error:
        return None


def _stop(process: "subprocess.Popen[bytes]", mark: str) -> None:
    terminate(process, STOP_SECONDS)
    left = _alive(mark)
    for survivor in left:
        survivor.kill()
    psutil.wait_procs(left, STOP_SECONDS)
    process.wait(STOP_SECONDS)


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, 4000, max(0, size - 4000)).decode("utf-8", "replace")
    return " / ".join(line.strip() for line in text.splitlines()[-5:] if line.strip())
