"""Ends a command on Ctrl-C with one line and the exit code that shells expect."""

import sys
from collections.abc import Callable

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""


def exit_code(main: Callable[[], int]) -> int:
    """Run a command; return its exit code, or INTERRUPTED after Ctrl-C, whose text is part of the line.

    Servers that the command started are stopped on the way out, by their context managers.
    """
    try:
        return main()
    except KeyboardInterrupt as interrupt:
        note = f"; {interrupt}" if interrupt.args else ""
        print(f"\nloadtests: interrupted{note}", file=sys.stderr)
        return INTERRUPTED
