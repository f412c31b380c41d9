"""Between a command and the person at its terminal: the command as typed, and notices on stderr."""

import os
import shlex
import sys


def command_line() -> str:
    """The command that started this process, as a person would type it, without this machine's paths."""
    return shlex.join(["python", "-m", "training", *sys.argv[1:]])


def notice(message: str) -> None:
    """Print a message that is not a result to stderr, in one process only: rank 0 of torchrun's."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
