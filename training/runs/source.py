"""Which source code a run was trained by."""

import subprocess
from pathlib import Path


def commit_of(file: Path) -> str | None:
    """The commit of the git checkout that tracks a file, with -dirty if tracked files differ from it.

    None if no checkout tracks the file, as for an installed package, or if there is no git.
    """
    tracked = _git(file.parent, "ls-files", "--error-unmatch", file.name)
    if tracked is None:
        return None
    return _git(file.parent, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, or None if it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
