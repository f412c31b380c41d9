"""API keys: which requests may pass. Knows paths and headers, and nothing else of HTTP.

Only digests of the file's keys are kept, so that no traceback shows one. What a client sent stays in memory
for as long as its head is cached (`service.http.fast.endpoint`).
"""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

from service.errors import SettingsError

logger = logging.getLogger(__name__)

MIN_LENGTH = 16
"""Shorter keys could be guessed: 16 characters drawn from 64 are 96 bits."""

LOOK_SECONDS = 5.0
"""Interval between checks for a changed file; the kubelet itself takes up to a minute to update it."""

OPEN = ("/", "/docs", "/openapi.json", "/metrics")
OPEN_BELOW = ("/v2/health/", "/docs/")
"""Paths that need no API key, and prefixes of such paths: documentation, scrapes and probes."""

_SENDABLE = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""A key as RFC 6750 allows it after `Bearer`."""

_SCHEME = b"bearer"


class ApiKeys:
    """The keys of a file, one per line; blank lines and lines starting with # are ignored."""

    def __init__(self, path: Path, digests: tuple[bytes, ...]) -> None:
        self._path = path
        self._digests = digests
        self._seen = _stamp(path)
        self._on_change: list[Callable[[], None]] = []

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Read the keys in a file. Raises SettingsError if it cannot be read or holds no valid keys."""
        return cls(path, _read_digests(path))

    def on_change(self, call: Callable[[], None]) -> None:
        """Call `call` whenever the keys have changed."""
        self._on_change.append(call)

    def permits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request sends one of the keys, as `Authorization: Bearer <key>`.

        headers: as in ASGI, their names in lower case. Two such headers are rejected: a proxy in front may
        have checked the other one.
        """
        sent = [value for name, value in headers if name == b"authorization"]
        if len(sent) != 1:
            return False
        scheme, _, key = sent[0].partition(b" ")
        if scheme.lower() != _SCHEME:
            return False
        digest = _digest(key.strip())
        # Compare with every key, so that timing reveals neither which one matched nor how close a guess came.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def reread(self) -> None:
        """Replace all keys at once by the file's current ones; on the event loop.

        If the file is bad, the log says why and the keys stay as they are.
        """
        try:
            digests = _read_digests(self._path)
        except SettingsError as error:
            logger.error("the API keys were not reloaded: %s", error)
            return
        self._digests = digests
        for call in self._on_change:
            call()
        logger.info("read %d API keys", len(self._digests))

    async def keep_current(self, every_seconds: float = LOOK_SECONDS) -> NoReturn:
        """Read the file again whenever it has changed, for ever: a mounted Secret changes unannounced."""
        while True:
            await asyncio.sleep(every_seconds)
            stamp = _stamp(self._path)
            if stamp != self._seen:
                self._seen = stamp
                self.reread()


def permits(keys: ApiKeys | None, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request to a path may pass.

    keys: None if no key is required. headers: as for `ApiKeys.permits`.
    """
    return keys is None or is_open(path) or keys.permits(headers)


def is_open(path: str) -> bool:
    """Whether requests to this path need no API key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def read_keys(path: Path | None) -> ApiKeys | None:
    """Read the keys in a file, if one is set. Raises SettingsError."""
    return None if path is None else ApiKeys.read(path)


@asynccontextmanager
async def kept_current(keys: ApiKeys | None) -> AsyncIterator[None]:
    """Watch the file for changes while the context is open."""
    looking = None if keys is None else asyncio.ensure_future(keys.keep_current())
    try:
        yield
    finally:
        if looking is not None:
            looking.cancel()


def _stamp(path: Path) -> tuple[int, ...]:
    """Return figures that change with a file; a mounted Secret becomes a link to another file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read_digests(path: Path) -> tuple[bytes, ...]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"API keys cannot be read from {path}: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    keys = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path} holds no API key, expected one per line")
    for number, key in keys:
        _check(key, f"{path}, line {number}")
    return tuple({_digest(key.encode("ascii")): None for _, key in keys})


def _check(key: str, where: str) -> None:
    """Check a key. Raises SettingsError; its message must not show the key, because it is logged."""
    if len(key) < MIN_LENGTH:
        raise SettingsError(f"{where}: API key has {len(key)} characters, expected at least {MIN_LENGTH}")
    if not _SENDABLE.fullmatch(key):
        raise SettingsError(f"{where}: API key has characters other than letters, digits and -._~+/=")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
