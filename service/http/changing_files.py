"""Files that may change while the service runs, as a mounted Secret does, which changes unannounced.

Knows nothing of what the files hold.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn, Protocol

LOOK_SECONDS = 5.0
"""Interval between checks for a changed file; the kubelet itself takes up to a minute to update it."""

Stamps = list[tuple[int, ...]]


class Follower(Protocol):
    """What follows its files: API keys and certificates."""

    async def keep_current(self) -> NoReturn:
        """Read the files again whenever they have changed, for ever."""
        ...


def stamps(paths: Sequence[Path]) -> Stamps:
    """Return figures that change with the files; a mounted Secret becomes a link to another file.

    Take them before reading the files, so that no change is missed.
    """
    return [_stamp(path) for path in paths]


async def follow(
    paths: Sequence[Path], seen: Stamps, changed: Callable[[], None], every_seconds: float = LOOK_SECONDS
) -> NoReturn:
    """Call `changed` whenever a file differs from what was seen last, for ever."""
    while True:
        await asyncio.sleep(every_seconds)
        now = stamps(paths)
        if now != seen:
            seen = now
            changed()


@asynccontextmanager
async def kept_current(follower: Follower | None) -> AsyncIterator[None]:
    """Follow the files while the context is open."""
    following = None if follower is None else asyncio.ensure_future(follower.keep_current())
    try:
        yield
    finally:
        if following is not None:
            following.cancel()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size
