"""The commit of the code that runs, as git knows it."""

import subprocess
from pathlib import Path

CODE = Path(__file__).parents[1]


def commit(code: Path = CODE) -> str:
    """The commit that is checked out, with "-dirty" if a file differs from it; empty outside a repository.

    code: a folder of the code. It must be tracked: a virtual environment may lie in anyone's repository.
    """
    if _git(code, "ls-files", "--error-unmatch", ".") is None:
        return ""
    changed = _git(code, "status", "--porcelain", "--untracked-files=no")
    return f"{_git(code, 'rev-parse', 'HEAD') or ''}{'-dirty' if changed else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
