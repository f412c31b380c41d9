"""API keys: which requests may pass. Knows headers, and nothing else of HTTP.

Of the file's keys only digests are kept, so that no traceback shows one. What a client sent stays in memory
for as long as its head is remembered (`service.http.fast.endpoint`).
"""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

from service.errors import SettingsError

logger = logging.getLogger(__name__)

MIN_LENGTH = 16
"""Shorter keys could be guessed: 16 characters drawn from 64 are 96 bits."""

LOOK_SECONDS = 5.0
"""How often to look whether the file has changed: the kubelet itself takes up to a minute."""

_SENDABLE = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What RFC 6750 lets stand behind `Bearer`."""

_SCHEME = b"bearer"


class ApiKeys:
    """The keys of a file, one a line; blank lines and those that begin with # are none.

    generation: another number whenever the keys are others.
    """

    def __init__(self, path: Path, digests: tuple[bytes, ...]) -> None:
        self._path = path
        self._digests = digests
        self._seen = _stamp(path)
        self.generation = 0

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """The keys in a file. Raises SettingsError for a file that cannot be read or holds no good keys."""
        return cls(path, _read_digests(path))

    def permits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request brings one of the keys, as `Authorization: Bearer <key>`.

        headers: as in ASGI, their names in lower case. With two such headers a request is refused: what
        stands in front may have judged the other one.
        """
        sent = [value for name, value in headers if name == b"authorization"]
        if len(sent) != 1:
            return False
        scheme, _, key = sent[0].partition(b" ")
        if scheme.lower() != _SCHEME:
            return False
        digest = _digest(key.strip())
        # Every key is looked at, so that the time tells neither which one it was nor how near it came.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def reread(self) -> None:
        """Take the keys that the file has now, all at once; on the event loop or elsewhere.

        Where the file is bad the log says why, and the keys stay as they are.
        """
        try:
            digests = _read_digests(self._path)
        except SettingsError as error:
            logger.error("the API keys were not read again: %s", error)
            return
        self._digests = digests
        self.generation += 1
        logger.info("read %d API keys", len(self._digests))

    async def keep_current(self, every_seconds: float = LOOK_SECONDS) -> NoReturn:
        """Read the file again whenever it is another one, for ever: a mounted Secret changes unannounced."""
        while True:
            await asyncio.sleep(every_seconds)
            stamp = _stamp(self._path)
            if stamp != self._seen:
                self._seen = stamp
                self.reread()


def read_keys(path: Path | None) -> ApiKeys | None:
    """The keys in a file, if there is one. Raises SettingsError."""
    return None if path is None else ApiKeys.read(path)


@asynccontextmanager
async def kept_current(keys: ApiKeys | None) -> AsyncIterator[None]:
    """While in here, look whether the keys have changed."""
    looking = None if keys is None else asyncio.ensure_future(keys.keep_current())
    try:
        yield
    finally:
        if looking is not None:
            looking.cancel()


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file; a mounted Secret's is a link to another file each time."""
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
        raise SettingsError(f"{path} holds no API key, expected one a line")
    for number, key in keys:
        _check(key, f"{path}, line {number}")
    return tuple({_digest(key.encode("ascii")): None for _, key in keys})


def _check(key: str, where: str) -> None:
    """Raises SettingsError, whose message must not show the key: it goes into logs."""
    if len(key) < MIN_LENGTH:
        raise SettingsError(f"{where}: API key has {len(key)} characters, expected at least {MIN_LENGTH}")
    if not _SENDABLE.fullmatch(key):
        raise SettingsError(f"{where}: API key has other characters than letters, digits and -._~+/=")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
