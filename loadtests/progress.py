"""Signs of life from a long step, on stderr, whether that is a terminal or a file."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY_SECONDS = 10.0


def say(text: str) -> None:
    """Print one line at once."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def doing(what: str, every_seconds: float = EVERY_SECONDS) -> Iterator[None]:
    """While the block runs, print every ten seconds what is being done, and for how long."""
    ended = threading.Event()
    started = time.monotonic()

    def report() -> None:
        while not ended.wait(every_seconds):
            say(f"  ... {what}, {time.monotonic() - started:.0f} s")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()
