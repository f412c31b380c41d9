"""A process that is started before it is needed: it imports its code, then waits to be told to work.

Knows nothing of what the process does.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable

from service.split.process import Process

logger = logging.getLogger("inkserve")


class Standby:
    """A process that waits to take another's place.

    spawn: starts one; it must read from the given descriptor, to work at a byte and to exit at end-of-file.
        Raises OSError.
    """

    def __init__(self, name: str, spawn: Callable[[int], Process]) -> None:
        self._name = name
        self._spawn = spawn
        self._process: Process | None = None
        self._order = -1

    def prepare(self) -> None:
        """Start a process, unless there is one.

        One that has exited is not replaced before it is asked for: it could be restarted for ever.
        """
        if self._process is not None:
            return
        theirs, ours = os.pipe()
        try:
            self._process = self._spawn(theirs)
        except OSError as error:  # the system is out of processes or memory
            logger.warning("the spare of %s cannot be started: %s", self._name, error)
            os.close(ours)
        else:
            self._order = ours
        finally:
            os.close(theirs)

    def take(self) -> Process | None:
        """Tell the waiting process to work, and return it; None if there is none."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            os.write(self._order, b"1")
        except BrokenPipeError:
            logger.warning("the spare of %s has exited", self._name)
            return None
        finally:
            os.close(self._order)
        return process

    async def close(self) -> None:
        """Kill the waiting process: it has nothing to finish."""
        process, self._process = self._process, None
        if process is not None:
            os.close(self._order)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
