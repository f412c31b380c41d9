"""SIGHUP from a process's first moment to its last: never fatal, remembered until models can be reloaded."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger("inkserve")

Reload = Callable[[], Coroutine[None, None, object]]


@contextmanager
def held_back() -> Iterator[None]:
    """Block SIGHUP in this thread meanwhile. A process that is started now inherits the block over exec.

    A signal to this process waits until the end, or another thread takes it; none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Hangups:
    """The handler of SIGHUP. Any number of signals during a load or a reload lead to one reload afterwards.

    A Python handler for the whole process, not the event loop's: the loop would restore the default action,
    which ends the process, before the process has ended.
    """

    def __init__(self) -> None:
        self._pending = False
        self._wake: Callable[[], object] | None = None
        self._reload: Reload | None = None
        self._reloading: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Handle SIGHUP from now on, also if this process was started with it blocked; on the main thread."""
        signal.signal(signal.SIGHUP, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def reload_with(self, reload: Reload) -> None:
        """Call `reload` on the running event loop at each signal, and now if one has come already."""
        loop = asyncio.get_running_loop()
        self._reload = reload
        self._wake = lambda: loop.call_soon_threadsafe(self._start)
        self._start()

    def ignore(self) -> None:
        """Do nothing at a signal from now on: the service is stopping."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._reload = self._wake = None

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self._pending = True
        if self._wake is not None:
            self._wake()

    def _start(self) -> None:
        if self._pending and self._reload is not None and self._reloading is None:
            self._reloading = asyncio.ensure_future(self._run(self._reload))

    async def _run(self, reload: Reload) -> None:
        try:
            while self._pending:
                self._pending = False
                await reload()
        except Exception:  # the process's edge: nobody waits for this task
            logger.exception("the models were not reloaded")
        finally:
            self._reloading = None
