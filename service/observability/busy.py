"""How long an event loop's thread has been busy, read from the kernel: no request pays for it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

Part = Literal["device", "http", "engine"]
"""What may be the bottleneck: the device, the event loops that speak HTTP, the event loop of the engine."""


class ThreadClock:
    """Seconds for which the thread that made this has run, or was ready to run and waited for a core.

    An event loop that is throttled by its CPU limit, or shares its core, is busy while it waits for one: CPU
    time alone would call it idle. A loop that sleeps in epoll is not. Where the kernel does not tell the
    waiting time (other systems than Linux, some sandboxes), it is the thread's CPU time. Call it from the
    thread that made it.
    """

    def __init__(self, schedstat: Path | None = None) -> None:
        """schedstat: the kernel's file for the thread; None for the usual one."""
        self._file = schedstat or Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._reads_file = True
        try:
            self._start = self._last = self._scheduled()
        except (OSError, ValueError):
            self._reads_file, self._start = False, time.thread_time()

    def busy_seconds(self) -> float:
        """Return the seconds since this was made; those of the last call if no file can be opened now."""
        if not self._reads_file:
            return time.thread_time() - self._start
        with contextlib.suppress(OSError):  # the process may be out of file descriptors
            self._last = self._scheduled()
        return self._last - self._start

    def _scheduled(self) -> float:
        with self._file.open("rb", buffering=0) as file:
            running, waiting, *_ = file.read(256).split()  # nanoseconds; see the kernel's sched-stats.rst
        return (int(running) + int(waiting)) / 1e9


class PartSeconds:
    """A counter of seconds with the label `part`; see `prometheus_client.registry.Collector`."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._parts: dict[Part, Callable[[], float]] = {}

    def watch(self, part: Part, seconds: Callable[[], float]) -> None:
        """Read one part's seconds at each collection."""
        assert part in get_args(Part)
        self._parts[part] = seconds

    def collect(self) -> Iterator[Metric]:
        """Return the counter now."""
        family = CounterMetricFamily(self._name, self._text, labels=["part"])
        for part, seconds in self._parts.items():
            family.add_metric([part], seconds())
        yield family
