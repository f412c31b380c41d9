"""Types of command line arguments that several commands share."""

import argparse
from pathlib import Path


def at_least_one(text: str) -> int:
    """Return a whole number from 1. Raises ArgumentTypeError."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"is {value}, expected at least 1")
    return value


def checkout(text: str) -> Path:
    """Return the folder of a checkout of this project. Raises ArgumentTypeError."""
    path = Path(text).resolve()
    if not (path / "service" / "__main__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} holds no service/__main__.py")
    return path
