"""Content-Type and Accept, parsed once for each header that clients send."""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from service.errors import NotAcceptable
from service.http.types import Headers

T = TypeVar("T")
P = ParamSpec("P")

CACHE_SIZE = 256
"""A parser's cache size, and the longest header or query cached, in bytes: clients send the same few."""


def cached(parse: Callable[P, T]) -> Callable[P, T]:
    """Parse the same short header or query, the first argument, only once. Errors are not cached."""
    parse_once = lru_cache(CACHE_SIZE)(parse)

    @wraps(parse)
    def look_up(*arguments: P.args, **options: P.kwargs) -> T:
        text = arguments[0]
        assert isinstance(text, bytes)
        return parse_once(*arguments) if len(text) <= CACHE_SIZE else parse(*arguments, **options)

    return look_up


def media_type(headers: Headers) -> str:
    """Return the Content-Type without its parameters, in lower case; empty if there is none."""
    return _media_type(headers.get(b"content-type", b""))


@cached
def _media_type(header: bytes) -> str:
    return header.partition(b";")[0].strip().lower().decode("latin-1")


def negotiate(headers: Headers, offered: tuple[str, ...]) -> str:
    """Return the offered media type that the Accept header prefers; the first one if it prefers none.

    Raises NotAcceptable (RFC 9110, section 12.5.1).
    """
    return _negotiate(headers.get(b"accept", b"*/*"), offered)


@cached
def _negotiate(accept: bytes, offered: tuple[str, ...]) -> str:
    ranges = [_media_range(part) for part in accept.decode("latin-1").lower().split(",") if part.strip()]
    best, best_quality = "", 0.0
    for candidate in offered:
        quality = _quality(candidate, ranges)
        if quality > best_quality:
            best, best_quality = candidate, quality
    if not best:
        raise NotAcceptable(
            f"Accept is {accept.decode('latin-1')[:200]!r}, expected one of {', '.join(offered)}"
        )
    return best


def _media_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in text.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0


def _quality(candidate: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that covers the candidate."""
    for pattern in (candidate, candidate.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0
