"""Between a command and the person at its terminal: the command as typed, and notices on stderr."""

import os
import shlex
import sys
from pathlib import Path


def command_line() -> str:
    """The command that started this process, as a person would type it in the current folder.

    It is published with a model, so absolute paths to other folders keep only their last part.
    """
    return shlex.join(["python", "-m", "training", *map(_without_folders, sys.argv[1:])])


def _without_folders(argument: str) -> str:
    """Shorten an absolute path in an argument: PATH, --NAME=PATH or NAME=PATH."""
    name, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    here = Path.cwd()
    return name + equals + str(path.relative_to(here) if path.is_relative_to(here) else path.name)


def notice(message: str) -> None:
    """Print a message that is not a result to stderr, in one process only: rank 0 of torchrun's."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
