"""Console blocks of Markdown pages: read them, run them in a shell per page, compare what they print.

A block is a fence ```console whose lines begin with `$ ` (a command, continued after a backslash) or are what
the command before them prints. There, `...` stands for anything, white space does not count, and numbers may
differ by a thousandth. `norun` in the fence's info string exempts a block.

A command that serves (`make serve`, `python -m service`) runs in the background until the page ends or serves
again; a page that calls a service without starting one gets `make serve`. The port 8000 is replaced by a free
one, so that the pages may run while other services do.
"""

import math
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("127.0.0.1:8000", "localhost:8000")
START_SECONDS = 60.0
COMMAND_SECONDS = 120.0
END_SECONDS = 20.0
RELATIVE_TOLERANCE = 1e-3
"""Another CPU sums float32 in another order: 1.8276879e-6 on one is 1.8276861e-6 on the next."""

CURL_REFUSED = 22
"""curl's exit code for a 4xx or 5xx: right only if the page shows an error."""

SERVES = re.compile(
    r"(?:\w+=\S+\s+)*(?:make serve\b|\S*python -m service (?!ping\b|.*--help\b)|\S*python -m service$)"
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".*cache", ".hypothesis", "build", "data", "reports", "runs"
)

PRELUDE = """
set -m -o pipefail
curl() { command curl --silent --fail-with-body "$@"; }
end() { # SIGNAL JOB: the job and all processes that it started
  kill -$1 -- -$2 2>/dev/null
  wait $2
  while kill -0 -- -$2 2>/dev/null; do sleep 0.05; done
}
"""


@dataclass(frozen=True)
class Command:
    """A command and what it prints, as the page shows it. line: in the page."""

    line: int
    text: str
    shown: str


@dataclass(frozen=True)
class Block:
    """A fence of a page. info: what follows its backticks."""

    line: int
    info: str
    lines: tuple[str, ...]

    @property
    def runs(self) -> bool:
        return self.info.split()[:1] == ["console"] and "norun" not in self.info.split()

    def commands(self) -> list[Command]:
        """The block's commands, in their order. Raises ValueError for output without a command."""
        found: list[tuple[int, list[str], list[str]]] = []
        continued = False
        for number, line in enumerate(self.lines, self.line + 1):
            if continued:
                found[-1][1].append(line)
            elif line.startswith("$ "):
                found.append((number, [line.removeprefix("$ ")], []))
            elif found:
                found[-1][2].append(line)
            else:
                raise ValueError(f"line {number} is {line!r}, expected a command after `$ `")
            continued = (continued or line.startswith("$ ")) and line.endswith("\\")
        return [Command(number, "\n".join(text), "\n".join(shown)) for number, text, shown in found]


def read_blocks(text: str) -> list[Block]:
    """Every fence of a page."""
    blocks, start, info, lines = [], 0, "", list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif start:
            blocks.append(Block(start, info, tuple(lines)))
            start = 0
        else:
            start, info, lines = number, line.removeprefix("```").strip(), []
    return blocks


def matches(shown: str, seen: str, port: int = 8000) -> bool:
    """Whether a command printed what the page shows."""
    shown = re.sub(r"(?:\.\.\.\s*)+", "...", with_port(shown, port))  # two in a row would take quadratic time
    pieces = [piece.strip() for piece in shown.split("...")]
    found = re.fullmatch(".*?".join(_pattern(piece) for piece in pieces), seen.strip(), re.DOTALL)
    if found is None:
        return False
    numbers = [number for piece in pieces for number in NUMBER.findall(piece)]
    return all(
        math.isclose(float(want), float(got), rel_tol=RELATIVE_TOLERANCE)
        for want, got in zip(numbers, found.groups(), strict=True)
    )


def _pattern(piece: str) -> str:
    """A regular expression for text: its numbers are groups, its white space may be any or none."""
    texts = [r"\s*".join(re.escape(word) for word in re.split(r"\s+", text)) for text in NUMBER.split(piece)]
    return f"({NUMBER.pattern})".join(texts)


def with_port(text: str, port: int) -> str:
    """The text with a service's address on another port."""
    for address in ADDRESSES:
        text = text.replace(address, address.replace("8000", str(port)))
    return text


def copy_tree(root: Path, to: Path) -> None:
    """Copy the project, with an environment that `make` takes for built: the one that runs this.

    `.venv/bin/python` is a script, as a link would be a Python of its own without packages.
    """

    def left_out(folder: str, names: list[str]) -> set[str]:
        return LEFT_OUT(folder, names) if Path(folder) == root else {"__pycache__"} & set(names)

    shutil.copytree(root, to, symlinks=True, ignore=left_out)
    if (root / "data").exists():
        (to / "data").symlink_to((root / "data").resolve())
    bin_folder = to / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for program in (Path(sys.prefix) / "bin").iterdir():
        if not program.name.startswith("python"):
            (bin_folder / program.name).symlink_to(program)
    python = bin_folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    subprocess.run(["make", "--touch", "serve", "test"], cwd=to, check=True, capture_output=True)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Failed(AssertionError):
    """A command of a page that did not do what the page says."""


class Shell:
    """A bash in a copy of the project, which runs a page's commands one after another.

    Use as a context manager: at its end everything that the page started is ended.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder = folder
        self._scratch = scratch
        self._port = free_port()
        self._count = 0
        self._server: int | None = None
        self._calls_its_own = False

    def __enter__(self) -> "Shell":
        environment = os.environ | {
            "INKSERVE_PORT": str(self._port),
            "MAKEFLAGS": "--silent",  # pages leave out the recipes that make prints
            "PYTHONUNBUFFERED": "1",
        }
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._execute(PRELUDE, 10)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end_jobs("TERM")
        except Failed:
            self._end_jobs("KILL")
        finally:
            self._bash.kill()
            self._bash.wait()
            for pipe in (self._bash.stdin, self._bash.stdout):
                assert pipe is not None
                pipe.close()

    def _end_jobs(self, signal: str) -> None:
        """End what runs in the background, each with the processes that it started."""
        self._execute(f"for job in $(jobs -p); do end {signal} $job; done", END_SECONDS)

    def run(self, command: Command) -> None:
        """Run a command and compare what it prints. Raises Failed."""
        text = with_port(command.text, self._port)
        if SERVES.match(text.replace("\\\n", " ")):
            if not text.endswith("&"):
                self._serve(text, command.shown)
                return
            self._calls_its_own = True
        calls = any(address in command.text for address in ADDRESSES)
        if calls and self._server is None and not self._calls_its_own:
            self._serve("make serve", "")
        status, seen = self._execute(text, COMMAND_SECONDS)
        refused = status == CURL_REFUSED and '{"error"' in command.shown
        if status and not refused:
            raise Failed(f"`{text}` exited with {status}:\n{seen}")
        if command.shown.strip() and not matches(command.shown, seen, self._port):
            raise Failed(f"`{text}` printed\n{seen}\nbut the page shows\n{command.shown}")

    def _serve(self, text: str, shown: str) -> None:
        """Start a service in the background and wait until it prints what is shown, or that it is ready."""
        self._stop_server()
        log = self._scratch / f"server-{self._count}.log"
        ended = log.with_suffix(".ended")
        log.touch()
        script = self._script(text)
        _, pid = self._execute(f'(source "{script}"; touch "{ended}") </dev/null >"{log}" 2>&1 & echo $!', 10)
        self._server = int(pid.split()[-1])
        shown = shown.strip() or "... ready at ..."
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            seen = log.read_text()
            if matches(f"...{shown}...", seen, self._port):
                return
            if ended.exists():
                break
            time.sleep(0.05)
        raise Failed(f"`{text}` did not print\n{shown}\nbut\n{log.read_text()}")

    def _stop_server(self) -> None:
        if self._server is None:
            return
        pid, self._server = self._server, None
        self._execute(f"end TERM {pid}", END_SECONDS)

    def _script(self, text: str) -> Path:
        self._count += 1
        path = self._scratch / f"command-{self._count}.sh"
        path.write_text(text + "\n")
        return path

    def _execute(self, text: str, seconds: float) -> tuple[int, str]:
        """Run text in the shell itself, so that variables and folders stay; its exit code and output."""
        script = self._script(text)
        mark = f"--- end of {script.name}: "
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"source '{script}' </dev/null; printf '\\n{mark}%d\\n' $?\n".encode())
        self._bash.stdin.flush()
        seen = ""
        for piece in self._pieces(seconds):
            seen += piece
            found = re.search(re.escape(mark) + r"(\d+)\n", seen)
            if found:
                return int(found[1]), seen[: found.start() - 1]
        raise Failed(f"`{text}` did not end within {seconds:g} s:\n{seen}")

    def _pieces(self, seconds: float) -> Iterator[str]:
        """What the shell prints, as it comes, until the time is over."""
        assert self._bash.stdout is not None
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self._bash.stdout], [], [], left)[0]:
                piece = os.read(self._bash.stdout.fileno(), 1 << 16)
                if not piece:
                    return
                yield piece.decode("utf-8", "replace")
