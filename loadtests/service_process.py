"""The service as a process of its own, on a port that the system chooses."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from loadtests.placement import on_cores
from loadtests.processes import terminate

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(r"ready at (http://127\.0\.0\.1:(\d+))")
STOP_SECONDS = 60


class NotStarted(Exception):
    """The service exited before it was ready; the message holds its log."""


@dataclass(frozen=True)
class Service:
    """A running service. start_seconds: from starting the process to readiness."""

    url: str
    port: int
    pid: int
    start_seconds: float


@contextmanager
def serving(arguments: Sequence[str], cores: list[int] | None = None) -> Iterator[Service]:
    """Run `python -m service` with these flags until the block ends. Raises NotStarted.

    cores: the cores to run on; None for all.
    """
    command = [sys.executable, "-m", "service", "--port", "0", *arguments]
    started = time.monotonic()
    with nullcontext() if cores is None else on_cores(cores):
        # In a session of its own: Ctrl-C ends the load first and then, through this function, the service.
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    with process:
        assert process.stderr is not None
        # Read to the end, or the service stops once the pipe is full.
        reader = threading.Thread(target=_discard, args=(process.stderr,))
        try:
            ready = _await_ready(process.stderr)
            service = Service(ready[1], int(ready[2]), process.pid, time.monotonic() - started)
            reader.start()
            yield service
        finally:
            terminate(process, STOP_SECONDS)
            if reader.ident is not None:
                reader.join()


def _await_ready(stream: IO[str]) -> re.Match[str]:
    lines = []
    for line in stream:
        lines.append(line)
        if ready := READY.search(line):
            return ready
    raise NotStarted("the service did not start:\n" + "".join(lines))


def _discard(stream: IO[str]) -> None:
    for _ in stream:
        pass
