"""ETags and Cache-Control of responses that depend on nothing but their request and the models."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from service.http.headers import CACHE_CONTROL, ETAG, VARY
from service.http.types import Headers
from service.observability.metrics import package_version
from service.settings import Settings

IF_NONE_MATCH = b"if-none-match"

PINNED_SECONDS = 86_400
"""How long a response of a pinned version may be used without asking: versions never change, machines do."""

_LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "pillow")
"""Packages that a response's bytes depend on."""

HeaderPair = tuple[bytes, bytes]


def etag_of(identity: tuple[object, ...], maker: str, *, is_exact: bool) -> bytes:
    """Return the ETag of a response.

    identity: all that decides what the response says. maker: see `maker_of`.
    is_exact: whether that decides its bytes, too; if not, the ETag is weak (RFC 9110, 8.8.1).
    """
    digest = hashlib.sha256(repr((maker, identity)).encode()).hexdigest()[:32]
    return (f'"{digest}"' if is_exact else f'W/"{digest}"').encode("ascii")


def maker_of(settings: Settings) -> str:
    """Return what a response's bytes depend on besides its request and the models: software and batches."""
    libraries = [f"{name} {_version(name)}" for name in _LIBRARIES]
    return f"{package_version()} {settings.provider} {settings.fixed_batch_size} {' '.join(libraries)}"


def has_current(headers: Headers, etag: bytes, *, exists: bool) -> bool:
    """Whether If-None-Match names this ETag, weakly compared (RFC 9110, 13.1.2).

    exists: whether the response would surely be a 200; only then `*` stands for it.
    """
    sent = headers.get(IF_NONE_MATCH)
    if sent is None:
        return False
    tags = {tag.strip().removeprefix(b"W/") for tag in sent.split(b",")}
    return etag.removeprefix(b"W/") in tags or (exists and b"*" in tags)


def cache_headers(etag: bytes, *, is_pinned: bool, is_private: bool) -> tuple[HeaderPair, ...]:
    """Return the headers of a response that caches may keep.

    is_pinned: whether the request names the versions of all models. A cache has to ask again for a response
        of the latest, because the next version changes it. is_private: whether only the client may keep it.
    """
    reach = "private" if is_private else "public"
    age = f"max-age={PINNED_SECONDS}" if is_pinned else "no-cache"
    return (
        (ETAG.wire, etag),
        (CACHE_CONTROL.wire, f"{reach}, {age}".encode("ascii")),
        (VARY.wire, b"Accept"),
    )


NEVER_CACHED: tuple[HeaderPair, ...] = ((CACHE_CONTROL.wire, b"no-store"),)
"""Headers of a response that no later request gets again: its seed was random."""


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
