"""Content-Type and Accept, parsed once for each header that clients send."""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from service.errors import NotAcceptable
from service.http.types import Headers

T = TypeVar("T")

P = ParamSpec("P")

REMEMBERED = 256
"""How many headers or queries a parser remembers, and the longest in bytes: clients send the same few."""


def remembered(parse: Callable[P, T]) -> Callable[P, T]:
    """Parse the same short header or query, the first argument, only once. Errors are not remembered."""
    cached = lru_cache(REMEMBERED)(parse)

    @wraps(parse)
    def remember(*arguments: P.args, **options: P.kwargs) -> T:
        text = arguments[0]
        assert isinstance(text, bytes)
        return cached(*arguments) if len(text) <= REMEMBERED else parse(*arguments, **options)

    return remember


def media_type(headers: Headers) -> str:
    """The Content-Type without its parameters, in lower case; empty if there is none."""
    return _media_type(headers.get(b"content-type", b""))


@remembered
def _media_type(header: bytes) -> str:
    return header.partition(b";")[0].strip().lower().decode("latin-1")


def negotiate(headers: Headers, offered: tuple[str, ...]) -> str:
    """The offered media type that the Accept header likes best; the first offered one if all are alike.

    Raises NotAcceptable (RFC 9110, section 12.5.1).
    """
    return _negotiate(headers.get(b"accept", b"*/*"), offered)


@remembered
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
    """Of the ranges that cover the candidate, the most specific one's quality."""
    for pattern in (candidate, candidate.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0
