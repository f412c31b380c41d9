"""Content codings: compressed bodies to plain ones, with a bound on their size. Knows nothing of HTTP."""

import zlib
from typing import Literal

from service.errors import InvalidInput, PayloadTooLarge

Coding = Literal["", "gzip", "deflate"]
"""A body's content coding; empty if it has none."""

_PIECE_BYTES = 64 * 1024
_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15


def decode(body: bytes, coding: Coding, max_bytes: int) -> bytes:
    """Return the body without its coding.

    The first pass only counts, so a compressed bomb takes no memory.
    Raises InvalidInput for a broken body, PayloadTooLarge above `max_bytes`.
    """
    if not coding:
        return body
    bits = _GZIP_BITS if coding == "gzip" else _deflate_bits(body)
    try:
        size = _inflate(body, bits, max_bytes, coding, None)
        decoded = bytearray()
        _inflate(body, bits, size, coding, decoded)
    except zlib.error as error:
        raise InvalidInput(f"body is declared as {coding}, but cannot be decoded: {error}") from None
    return bytes(decoded)


def _deflate_bits(body: bytes) -> int:
    """Return the window bits of a deflate body: many clients leave out zlib's header (RFC 9110, 8.4.1.2)."""
    has_zlib_header = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _ZLIB_BITS if has_zlib_header else _RAW_BITS


def _inflate(body: bytes, bits: int, max_bytes: int, coding: Coding, into: bytearray | None) -> int:
    """Return the decoded size; append the decoded bytes to `into`, if it is given."""
    size, rest = 0, body
    while True:  # one round per member: a gzip file may have several
        inflater = zlib.decompressobj(bits)
        while not inflater.eof:
            piece = inflater.decompress(rest, _PIECE_BYTES)
            rest = inflater.unconsumed_tail
            size += len(piece)
            if size > max_bytes:
                raise PayloadTooLarge(
                    f"body has over {max_bytes} bytes decoded, expected at most {max_bytes}"
                )
            if into is not None:
                into += piece
            if not piece and not rest and not inflater.eof:
                raise InvalidInput(f"body is declared as {coding}, but ends early, expected a whole stream")
        rest = inflater.unused_data
        if not rest:
            return size
        if coding != "gzip":
            raise InvalidInput(f"body has {len(rest)} bytes after its {coding} stream, expected none")
