"""A stream for log lines that never blocks its callers: a thread writes what is in a bounded queue.

If nobody reads stderr, a pipe takes 64 KiB, and the next write blocks for ever. Knows nothing of formats.
"""

import contextlib
import io
import os
import queue
import select
import threading
from collections.abc import Callable

MAX_BYTES = 1024 * 1024
"""Lines that wait for more than this are dropped: 64 KiB of lines fit into a pipe already."""

PAUSE_SECONDS = 0.005
"""Lines of this time are written together. Waking the thread for each would hand over the GIL for each."""

DRAIN_SECONDS = 1.0
"""How long an exit waits for the last lines to be written."""

POLL_MILLISECONDS = 1000

_Item = bytes | threading.Event


class LogWriter(io.TextIOBase):
    """A stream to a file descriptor. Any thread may write to it, and so may a signal handler.

    recovered: returns the line that reports how many lines were dropped.
    """

    def __init__(self, fd: int, recovered: Callable[[int], str], max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self.dropped = 0
        self._reported = 0
        self._fd = fd
        self._recovered = recovered
        self._max_bytes = max_bytes
        self._lock = threading.RLock()  # reentrant, as SimpleQueue is, for signal handlers
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._waiting_bytes = 0
        # A daemon: one that is blocked in write(2) must not keep the process alive.
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Queue text, which is whole lines; drop it if too much is queued. Never blocks, never raises."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting_bytes + len(data) > self._max_bytes:
                self.dropped += _lines_in(data)
            else:
                self._waiting_bytes += len(data)
                self._queue.put(data)
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Wait until all lines queued so far are written; returns False if that took too long."""
        written = threading.Event()
        self._queue.put(written)
        return written.wait(seconds)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether a person reads the lines."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: stderr stays open until the process exits."""

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            items = [self._queue.get()]
            if not isinstance(items[0], threading.Event):
                pause.wait(PAUSE_SECONDS)
            with contextlib.suppress(queue.Empty):
                while True:
                    items.append(self._queue.get_nowait())
            self._write_all([item for item in items if isinstance(item, bytes)])
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _write_all(self, lines: list[bytes]) -> None:
        written = True
        for chunk in _chunks(lines):
            written = self._write(chunk)
            with self._lock:
                self._waiting_bytes -= len(chunk)
                self.dropped += 0 if written else _lines_in(chunk)
        if written and (lost := self.dropped - self._reported):
            self._reported += lost
            self._write(self._recovered(lost).encode())

    def _write(self, chunk: bytes) -> bool:
        """Write a chunk; returns whether the system took it."""
        rest = memoryview(chunk)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(POLL_MILLISECONDS)
            except OSError:  # closed, broken or full: there is nowhere left to report it
                return False
        return True


def _chunks(lines: list[bytes]) -> list[bytes]:
    """Join texts up to PIPE_BUF bytes, which one write puts into a pipe between other processes' lines."""
    chunks: list[bytes] = []
    joined: list[bytes] = []
    size = 0
    for line in (each for text in lines for each in text.splitlines(keepends=True)):
        if joined and size + len(line) > select.PIPE_BUF:
            chunks.append(b"".join(joined))
            joined, size = [], 0
        joined.append(line)
        size += len(line)
    return [*chunks, b"".join(joined)] if joined else chunks


def _lines_in(data: bytes) -> int:
    return max(1, data.count(b"\n"))
