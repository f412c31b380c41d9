"""Memory, descriptors and threads of a server's processes, from /proc."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

MB = 1_000_000
WATCH_SECONDS = 0.02
RESET_PEAK = "5"
"""Written to clear_refs, makes the current RSS the peak, see proc(5)."""


@dataclass
class Watch:
    """What `Resources.watching` has seen so far; complete after its block.

    before: bytes of RSS. grown: from there to the sum of the peaks. exited: processes that are gone.
    """

    before: int
    grown: int = 0
    exited: int = 0


class Resources:
    """What some processes use: each figure is their sum. A process that has exited counts as nothing."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._folders = [Path("/proc") / str(process.pid) for process in processes]

    def rss(self) -> int:
        """Bytes of memory now; pages that they share count in each."""
        return self._sum(lambda folder: _status(folder, "VmRSS") * 1024)

    def descriptors(self) -> int:
        """Open file descriptors."""
        return self._sum(lambda folder: len(list((folder / "fd").iterdir())))

    def threads(self) -> int:
        """Threads."""
        return self._sum(lambda folder: _status(folder, "Threads"))

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Watch the peak while the block runs, so that a process that exits meanwhile counts with its own."""
        self._sum(_reset_peak)
        watch = Watch(self.rss())
        ended = threading.Event()

        def look() -> None:
            peaks = dict.fromkeys(self._folders, 0)
            while True:
                last = ended.wait(WATCH_SECONDS)
                for folder in self._folders:
                    peaks[folder] = max(peaks[folder], _unless_gone(_peak, folder))
                watch.grown = sum(peaks.values()) - watch.before
                if last:
                    break
            watch.exited = sum(not (folder / "exe").exists() for folder in self._folders)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield watch
        finally:
            ended.set()
            thread.join()

    def _sum(self, read: Callable[[Path], int]) -> int:
        return sum(_unless_gone(read, folder) for folder in self._folders)


def _unless_gone(read: Callable[[Path], int], folder: Path) -> int:
    try:
        return read(folder)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _status(folder: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0  # a zombie has no memory


def _peak(folder: Path) -> int:
    return _status(folder, "VmHWM") * 1024


def _reset_peak(folder: Path) -> int:
    (folder / "clear_refs").write_text(RESET_PEAK)
    return 0


def gauge(text: str, name: str) -> float | None:
    """The sum of a metric's samples in Prometheus text, whatever their labels; None if it has none."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", text, re.MULTILINE)
    return sum(map(float, values)) if values else None
