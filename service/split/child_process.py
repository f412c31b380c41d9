"""A child process that is restarted when it exits. Knows nothing of what the process does."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

logger = logging.getLogger("inkserve")

SECOND_DELAY_SECONDS = 0.1
"""The first restart is immediate; then the delay doubles, from this to the longest."""

LONGEST_DELAY_SECONDS = 5.0
WORKING_SECONDS = 3.0
"""A process that worked this long is restarted at once when it exits, as after a first failure."""


class Process(Protocol):
    """A running process: `service.split.process.Process`, or one of asyncio's.

    returncode: None until it has exited.
    """

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it is known."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has exited."""
        ...


class Child:
    """A process that is restarted whenever it exits, with a growing delay.

    spawn: starts it. ended: called each time it has exited.
    settled: restart the process when it exits; while false, an exit is final.
    """

    def __init__(self, name: str, spawn: Callable[[], Awaitable[Process]], ended: Callable[[], None]) -> None:
        self.settled = False
        self._name = name
        self._spawn = spawn
        self._ended = ended
        self._process: Process | None = None
        self._working_since: float | None = None
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()

    async def keep(self) -> int:
        """Run the process, restarting it until `stop`; returns the exit code of its last run."""
        delay = 0.0
        try:
            while True:
                self._working_since = None
                code = await self._run()
                if self._stopping.is_set() or not self.settled:
                    return code
                if (
                    self._working_since is not None
                    and time.monotonic() - self._working_since > WORKING_SECONDS
                ):
                    delay = 0.0
                logger.error("%s exited with %s; restarting it in %g s", self._name, _cause(code), delay)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._stopping.wait()
                    return code
                delay = min(max(2 * delay, SECOND_DELAY_SECONDS), LONGEST_DELAY_SECONDS)
        finally:
            self._over.set()

    def note_working(self) -> None:
        """Note that the process does its work now; call it again and again while it does."""
        self._working_since = self._working_since or time.monotonic()

    def signal(self, sig: signal.Signals) -> None:
        """Send the process a signal, if it is running."""
        if self._process is not None and self._process.returncode is None:
            # Not send_signal: asyncio's would reap a process that has just exited, and lose its exit code.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, sig)

    def kill(self) -> None:
        """Kill the process; it is not restarted."""
        self._stopping.set()
        self.signal(signal.SIGKILL)

    async def stop(self, timeout_seconds: float) -> None:
        """Stop the process with SIGTERM, or with SIGKILL if that takes too long; it is not restarted."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._over.wait()
        except TimeoutError:
            logger.error("%s did not exit within %g s; killing it", self._name, timeout_seconds)
            self.kill()
            await self._over.wait()

    async def _run(self) -> int:
        try:
            self._process = await self._spawn()
        except OSError as error:  # the system is out of processes or descriptors
            logger.error("%s cannot be started: %s", self._name, error)
            return 1
        if self._stopping.is_set():  # it started too late to receive the signal
            self.signal(signal.SIGTERM)
        code = await self._process.wait()
        self._process = None
        self._ended()
        return code


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"
