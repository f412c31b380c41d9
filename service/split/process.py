"""A process of the split service, started so that no SIGHUP can kill it. Knows nothing of what it runs."""

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence

from service.hangups import held_back


class Process:
    """A running process.

    Not one of uvloop's: libuv resets the signal mask and all ignored signals in the processes that it starts.
    SIGHUP would kill them until Python runs and has a handler.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid
        self.returncode: int | None = None
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        threading.Thread(target=self._wait, name=f"wait for {self.pid}", daemon=True).start()

    async def wait(self) -> int:
        """Return the exit code once the process has exited; negative for a signal."""
        await self._exited.wait()
        assert self.returncode is not None
        return self.returncode

    def _wait(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._note_exit, code)

    def _note_exit(self, code: int) -> None:
        self.returncode = code
        self._exited.set()


def start(command: Sequence[str], fds: Sequence[int], env: Mapping[str, str]) -> Process:
    """Start a process, which inherits only these file descriptors. Raises OSError.

    It starts with SIGHUP blocked; `Hangups.install` unblocks it there.
    """
    with held_back():
        process = subprocess.Popen(
            command,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,  # or Ctrl-C would reach it too, before its turn to stop
        )
    return Process(process)
