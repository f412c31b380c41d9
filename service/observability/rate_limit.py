"""Limits how often the same thing is logged, so that what clients send cannot fill a log."""

import logging
import time
from collections.abc import Callable, Hashable

MAX_KINDS = 1024

LINES = 50
WINDOW_SECONDS = 10.0
"""At most this many lines per place in the code and window, for warnings and errors."""


class RateLimit:
    """Decides which lines are logged: at most `lines` per window of `seconds` and kind.

    Kinds should come from a closed set; beyond MAX_KINDS, the oldest is forgotten.
    """

    def __init__(self, lines: int, seconds: float) -> None:
        self._lines = lines
        self._seconds = seconds
        self._kinds: dict[Hashable, tuple[float, int, int]] = {}  # start of window, admitted, suppressed

    def admit(self, kind: Hashable, now: float) -> int | None:
        """Return how many lines of this kind were suppressed since the last one, or None to suppress it too.

        now: in seconds, on a clock that never goes back.
        """
        start, admitted, suppressed = self._kinds.pop(kind, (now, 0, 0))
        if now - start >= self._seconds:
            start, admitted = now, 0
        if admitted >= self._lines:
            self._kinds[kind] = start, admitted, suppressed + 1
            return None
        if len(self._kinds) >= MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = start, admitted + 1, 0
        return suppressed


class RateLimitedLog:
    """Logs to a logger within a limit; a line after suppressed ones says how many those were.

    clock: returns seconds.
    """

    def __init__(
        self, logger: logging.Logger, limit: RateLimit, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._limit = limit
        self._clock = clock

    def warning(self, kind: Hashable, message: str, *values: object) -> None:
        """Log a warning, or suppress it. kind: lines of other kinds do not count."""
        suppressed = self._limit.admit(kind, self._clock())
        if suppressed is not None:
            more = f" ({suppressed} more were not logged)" if suppressed else ""
            self._logger.warning(message + more, *values)


class RateLimitFilter(logging.Filter):
    """Limits warnings and errors per place in the code that logs them, whoever wrote that code.

    A line after suppressed ones gets their number as its attribute `suppressed`.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._limit = limit
        self._clock = clock

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record."""
        if record.levelno < logging.WARNING:
            return True
        suppressed = self._limit.admit((record.pathname, record.lineno), self._clock())
        if suppressed:
            record.suppressed = suppressed
        return suppressed is not None
