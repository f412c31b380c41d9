"""Where a command's results go, and how they get there whole.

A full-length run updates the published files; every other run writes to reports/, which git ignores. A file
gets its name only when it is complete.
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loadtests.machine import ROOT

REPORTS = ROOT / "reports"


def add_output_arguments(parser: argparse.ArgumentParser, published: Path, *, what: str) -> None:
    """Add --output and --publish. what: the help text of --output, without its default."""
    parser.add_argument(
        "--output",
        type=Path,
        help=f"{what} (default: {shown(published)} if the run has full length, "
        f"otherwise reports/{published.name})",
    )
    parser.add_argument(
        "--publish", action="store_true", help=f"write to {shown(published)}, whatever the length of the run"
    )


def chosen_output(parsed: argparse.Namespace, published: Path, *, full: bool) -> Path:
    """The path to write to. full: whether the run measures all that the published files report."""
    if parsed.output is not None:
        return Path(parsed.output)
    return published if full or parsed.publish else REPORTS / published.name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it replaces `path`, otherwise it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    with replacing(path) as part:
        part.write_text(text)


class Unfinished:
    """What a long run has measured so far, in reports/, so that a crash or Ctrl-C does not lose all of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._written: list[Path] = []

    def write(self, texts: Mapping[str, str]) -> None:
        """Write one file per suffix, for instance .json, in place of those written before."""
        self._written = [REPORTS / f"{self._name}-unfinished{suffix}" for suffix in texts]
        for path, text in zip(self._written, texts.values(), strict=True):
            write_text(path, text)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Remove the files if the block succeeds; name them if Ctrl-C ends it."""
        try:
            yield
        except KeyboardInterrupt:
            if self._written:
                raise KeyboardInterrupt(f"{shown(self._written[-1])} has what was measured") from None
            raise
        for path in self._written:
            path.unlink(missing_ok=True)


def shown(path: Path) -> str:
    """The path for a message: relative to the checkout if it lies there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
