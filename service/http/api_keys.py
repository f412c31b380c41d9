"""API keys: which requests may pass. Knows paths and headers, and nothing else of HTTP.

A line of the file is a key, which has every scope, or `NAME:SCOPES:KEY`, such as `shop:infer,metrics:...`. In
place of a key there may be its digest, `sha256=HEX`. No key holds a colon, so the two forms are distinct.

Only digests of the file's keys are kept, so that no traceback shows one. What a client sent stays in memory
for as long as its head is cached (`service.http.fast.endpoint`).
"""

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, get_args

from service.errors import Forbidden, SettingsError, Unauthorized
from service.http.changing_files import LOOK_SECONDS, Stamps, follow, stamps

logger = logging.getLogger(__name__)

Scope = Literal["infer", "admin", "metrics"]
"""What a key may do: use models, change the service, read its metrics."""

MIN_LENGTH = 16
"""Shorter keys could be guessed: 16 characters drawn from 64 are 96 bits."""

MAX_FILE_BYTES = 1024 * 1024
"""A larger file holds something else; these are 16,000 keys."""

PROBES_BELOW = "/v2/health/"

OPEN = ("/", "/docs", "/openapi.json")
OPEN_BELOW = (PROBES_BELOW, "/docs/", "/playground/")
"""Paths that need no API key, and prefixes of such paths: probes, documentation, the playground's files."""

METRICS = "/metrics"
"""Needs no API key either, unless a line of the file names the scope `metrics`."""

ADMIN_BELOW = ("/admin/", "/v2/repository/")
"""Prefixes of paths that need the scope `admin`. All other paths need `infer`."""

_SENDABLE = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""A key as RFC 6750 allows it after `Bearer`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256=([0-9A-Fa-f]{64})")

_SCHEME = b"bearer"


@dataclass(frozen=True)
class Grant:
    """One line of the file. name: empty for a line that is only a key."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes


class ApiKeys:
    """The keys of a file, one per line; blank lines and lines starting with # are ignored."""

    def __init__(self, path: Path, grants: tuple[Grant, ...], seen: Stamps) -> None:
        self._path = path
        self._grants = grants
        self._seen = seen
        self._on_change: list[Callable[[], None]] = []

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Read the keys in a file. Raises SettingsError if it cannot be read or holds no valid keys."""
        seen = stamps([path])
        return cls(path, _read_grants(path), seen)

    @property
    def closes_metrics(self) -> bool:
        """Whether /metrics needs a key, because a named key has its scope."""
        return any(grant.name and "metrics" in grant.scopes for grant in self._grants)

    def on_change(self, call: Callable[[], None]) -> None:
        """Call `call` whenever the keys have changed."""
        self._on_change.append(call)

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> Grant | None:
        """Return the line whose key a request sends as `Authorization: Bearer <key>`, or None.

        headers: as in ASGI, their names in lower case. Two such headers are rejected: a proxy in front may
        have checked the other one.
        """
        sent = [value for name, value in headers if name == b"authorization"]
        if len(sent) != 1:
            return None
        scheme, _, key = sent[0].partition(b" ")
        if scheme.lower() != _SCHEME:
            return None
        digest = _digest(key.strip())
        # Compare with every key, so that timing reveals neither which one matched nor how close a guess came.
        found = [grant for grant in self._grants if hmac.compare_digest(digest, grant.digest)]
        return found[0] if found else None

    def permits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request sends one of the keys, whatever its scopes."""
        return self.find(headers) is not None

    def reread(self) -> None:
        """Replace all keys at once by the file's current ones; on the event loop.

        If the file is bad, the log says why and the keys stay as they are.
        """
        try:
            grants = _read_grants(self._path)
        except SettingsError as error:
            logger.error("the API keys were not reloaded: %s", error)
            return
        self._grants = grants
        for call in self._on_change:
            call()
        logger.info("read %d API keys", len(self._grants))

    async def keep_current(self, every_seconds: float = LOOK_SECONDS) -> NoReturn:
        """Read the file again whenever it has changed, for ever."""
        await follow([self._path], self._seen, self.reread, every_seconds)


class Admission(NamedTuple):
    """What the keys decide about a request.

    name: of the key that it sends; empty if the key has no name, is unknown or is not asked for. None if no
        keys are in use.
    error: rejects the request; None if it may pass.
    """

    name: str | None
    error: Unauthorized | Forbidden | None = None


def admit(keys: ApiKeys | None, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Admission:
    """Decide whether a request to a path may pass.

    keys: None if no key is required. headers: as for `ApiKeys.find`.
    """
    if keys is None:
        return Admission(None)
    if is_open(path, keys):
        return Admission("")
    headers = list(headers)
    grant = keys.find(headers)
    if grant is None:
        sent = "unknown" if any(name == b"authorization" for name, _ in headers) else "missing"
        return Admission("", Unauthorized(f"API key is {sent}, expected Authorization: Bearer <key>"))
    scope = scope_of(path)
    if scope not in grant.scopes:
        denied = Forbidden(f"API key has the scopes {_joined(grant.scopes)}, expected {scope}")
        return Admission(grant.name, denied)
    return Admission(grant.name)


def is_open(path: str, keys: ApiKeys | None = None) -> bool:
    """Whether requests to this path need no API key. keys: those in use, if /metrics may need one."""
    if path == METRICS:
        return keys is None or not keys.closes_metrics
    return path in OPEN or path.startswith(OPEN_BELOW)


def scope_of(path: str) -> Scope:
    """Return the scope that requests to this path need."""
    if path == METRICS:
        return "metrics"
    return "admin" if path.startswith(ADMIN_BELOW) else "infer"


def read_keys(path: Path | None) -> ApiKeys | None:
    """Read the keys in a file, if one is set. Raises SettingsError."""
    return None if path is None else ApiKeys.read(path)


def _read_text(path: Path) -> str:
    """Return the text of a regular file. Raises SettingsError; never waits for what is no file."""
    try:
        # A FIFO that nobody writes to would be waited for without O_NONBLOCK.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123, a descriptor has no path
            mode = os.fstat(fd).st_mode
            data = file.read(MAX_FILE_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise SettingsError(f"API keys cannot be read from {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise SettingsError(f"API keys cannot be read from {path}: it is {_kind(mode)}, expected a file")
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} has more than {MAX_FILE_BYTES} bytes, expected one API key per line")
    try:
        return data.decode("utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:  # its message has one byte of the file, its traceback all
        raise SettingsError(
            f"API keys cannot be read from {path}: it is not UTF-8, {error.reason} at byte {error.start}"
        ) from None


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device"


def _read_grants(path: Path) -> tuple[Grant, ...]:
    lines = [(number, line.strip()) for number, line in enumerate(_read_text(path).splitlines(), start=1)]
    keys = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path} holds no API key, expected one per line")
    grants: dict[bytes, Grant] = {}
    for number, line in keys:
        where = f"{path}, line {number}"
        grant = _read_grant(line, where)
        if grants.setdefault(grant.digest, grant) != grant:
            raise SettingsError(f"{where}: API key is there already, with another name or other scopes")
    return tuple(grants.values())


def _read_grant(line: str, where: str) -> Grant:
    """Read a line. Raises SettingsError; its message must not show the key, because it is logged."""
    if ":" not in line:
        return Grant("", frozenset(get_args(Scope)), _read_key(line, where))
    parts = line.split(":")
    if len(parts) != 3:
        raise SettingsError(f"{where} has {len(parts) - 1} colons, expected KEY or NAME:SCOPES:KEY")
    name, scopes, key = (part.strip() for part in parts)
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: the name is not 1 to 64 letters, digits and ._-, the first no sign")
    named = frozenset(scope.strip() for scope in scopes.split(","))
    if not named <= set(get_args(Scope)):
        # Not shown: a key that is in the wrong place would be.
        raise SettingsError(f"{where}: a scope is unknown, expected some of {_joined(get_args(Scope))}")
    return Grant(name, frozenset(scope for scope in get_args(Scope) if scope in named), _read_key(key, where))


def _read_key(key: str, where: str) -> bytes:
    """Return the digest of a key, or that which is written in its place."""
    digest = _DIGEST.fullmatch(key)
    if digest is not None:
        return bytes.fromhex(digest[1])
    if key.startswith("sha256="):
        raise SettingsError(f"{where}: the digest has {len(key) - 7} characters, expected 64 hex digits")
    if len(key) < MIN_LENGTH:
        raise SettingsError(f"{where}: API key has {len(key)} characters, expected at least {MIN_LENGTH}")
    if not _SENDABLE.fullmatch(key):
        raise SettingsError(f"{where}: API key has characters other than letters, digits and -._~+/=")
    return _digest(key.encode("ascii"))


def _joined(scopes: Iterable[Scope]) -> str:
    return ", ".join(sorted(scopes))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
