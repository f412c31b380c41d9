"""Large PNGs in strips: each strip is averaged down before the next one is decompressed.

Pillow decodes a PNG whole: 16 million pixels with transparency take 187 MB. Here zlib gives some rows at a
time, and Pillow undoes their filters as those of a small PNG. A filter refers to the row above, so a strip
begins with the last row of the strip before it, unfiltered. Knows nothing of budgets.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.content.picture_files import PNG_SIGNATURE

STRIP_BYTES = 256 * 1024
"""A strip has at most this many bytes and pixels, unless one row of the result takes more."""

PIECE_BYTES = 64 * 1024
"""zlib copies what it does not use yet of the bytes that it is given."""

MAX_WIDTH = 32_768
"""Wider PNGs have rows that are no longer small."""

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_COLOURS = (b"PLTE", b"tRNS")
_LANES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_TYPES = {1: _GREY, 2: _GREY_ALPHA, 3: _RGB, 4: _RGBA}
"""The colour type with this many bytes per pixel, at 8 bits per channel."""

Bytes = NDArray[np.uint8]


class Header(NamedTuple):
    """The fields of IHDR (PNG specification, 11.2.2)."""

    width: int
    height: int
    depth: int
    colours: int
    compression: int
    filtering: int
    interlace: int

    @property
    def row_bytes(self) -> int:
        """The bytes of a row, without the byte of its filter."""
        return -(-self.width * self.depth * _LANES[self.colours] // 8)


def can_be_read(content: bytes, size: tuple[int, int]) -> bool:
    """Whether a PNG can be read in strips. size: what Pillow read from its header."""
    header = _header(content)
    return content[12:16] == b"IHDR" and header[:2] == size and not header.interlace and size[0] <= MAX_WIDTH


def read_reduced(content: bytes, factor: int) -> Image.Image:
    """Decode a PNG, averaged over squares of `factor` pixels: L, RGB, RGBA or, if it has 16 bits, I;16.

    content: a file without metadata that `can_be_read`. Raises OSError if it is broken.
    """
    header = _header(content)
    colours = b"".join(_chunk(kind, bytes(data)) for kind, data in _chunks(content) if kind in _COLOURS)
    rows = min(STRIP_BYTES // header.row_bytes, STRIP_BYTES // header.width)
    rows = max(1, rows // factor) * factor
    result: Image.Image | None = None
    for top, strip in _strips(header, content, rows):
        reduced = _reduced(header, colours, strip, factor)
        if result is None:
            result = Image.new(reduced.mode, (reduced.width, -(-header.height // factor)))
        result.paste(reduced, (0, top // factor))
    assert result is not None
    return result


def _strips(header: Header, content: bytes, rows: int) -> Iterator[tuple[int, Bytes]]:
    """Yield each strip's first row and its unfiltered bytes, (rows, row_bytes)."""
    inflater = zlib.decompressobj()
    data = (data for kind, data in _chunks(content) if kind == b"IDAT")
    above = np.zeros((1, header.row_bytes + 1), np.uint8)  # with its filter's number: none
    for top in range(0, header.height, rows):
        count = min(rows, header.height - top)
        raw = _inflate(inflater, data, count * (header.row_bytes + 1))
        filtered = np.frombuffer(raw, np.uint8).reshape(count, -1)
        strip = _unfiltered(header, np.concatenate([above, filtered]))[1:]
        above[0, 1:] = strip[-1]
        yield top, strip


def _inflate(inflater: "zlib._Decompress", data: Iterator[memoryview], size: int) -> bytes:
    """Return this many decompressed bytes. data: pieces that have not been given to the inflater yet."""
    pieces = []
    while size:
        given = inflater.unconsumed_tail or next(data, None)
        try:
            piece = inflater.decompress(given or b"", size)
        except zlib.error as error:
            raise OSError(f"broken data stream: {error}") from None
        if given is None and not piece:
            raise OSError("image file is truncated")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _unfiltered(header: Header, rows: Bytes) -> Bytes:
    """Undo the filters of rows. rows: (rows, 1 + row_bytes), with the filters' numbers.

    Filters work on bytes, whatever they mean: Pillow undoes them in pictures of 8 bits per channel. Pixels of
    6 or 8 bytes are divided into their high and low bytes, which no filter mixes.
    """
    size = max(1, header.depth * _LANES[header.colours] // 8)
    if size in _TYPES:
        return _decoded(rows, size)
    unfiltered = np.empty((len(rows), header.row_bytes), np.uint8)
    for lane in (0, 1):
        half = np.concatenate([rows[:, :1], rows[:, 1 + lane :: 2]], axis=1)
        unfiltered[:, lane::2] = _decoded(half, size // 2)
    return unfiltered


def _decoded(rows: Bytes, pixel_bytes: int) -> Bytes:
    """Undo the filters of rows with 1 to 4 bytes per pixel."""
    width = (rows.shape[1] - 1) // pixel_bytes
    header = Header(width, len(rows), 8, _TYPES[pixel_bytes], 0, 0, 0)
    return np.asarray(_picture(header, b"", rows)).reshape(len(rows), -1)


def _reduced(header: Header, colours: bytes, strip: Bytes, factor: int) -> Image.Image:
    """Return a strip's picture at the reduced scale. strip: (rows, row_bytes), unfiltered."""
    if header.depth == 16 and header.colours == _GREY:
        wide = strip.view(">u2").astype(np.int32)
        averaged = np.asarray(Image.fromarray(wide).reduce(factor))
        return Image.fromarray(averaged.astype(np.uint16))
    if header.depth == 16:
        strip, header, colours = strip[:, ::2], header._replace(depth=8), b""
    rows = np.pad(strip, ((0, 0), (1, 0)))
    picture = _picture(header._replace(height=len(strip)), colours, rows)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return picture.reduce(factor)


def _picture(header: Header, colours: bytes, rows: Bytes) -> Image.Image:
    """Decode rows as a PNG of their own. colours: its other chunks."""
    parts = (
        PNG_SIGNATURE,
        _chunk(b"IHDR", struct.pack(">IIBBBBB", *header)),
        colours,
        _chunk(b"IDAT", zlib.compress(rows.tobytes(), 0)),
        _chunk(b"IEND", b""),
    )
    picture = Image.open(io.BytesIO(b"".join(parts)), formats=("PNG",))
    picture.load()
    return picture


def _header(content: bytes) -> Header:
    return Header(*struct.unpack_from(">IIBBBBB", content, len(PNG_SIGNATURE) + 8))


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield each chunk's kind and data, in pieces; of a file that ends early, as much as there is."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        for start in range(at + 8, max(end, at + 9), PIECE_BYTES):
            yield kind, memoryview(content)[start : min(end, start + PIECE_BYTES)]
        at = end + 4


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
