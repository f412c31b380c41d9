"""The log's lines in memory, as if stderr were a string."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_to_memory() -> Iterator[io.StringIO]:
    """Make a string the only place that lines of level INFO and above go to."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    stream = io.StringIO()
    root.handlers[:] = [logging.StreamHandler(stream)]
    root.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
