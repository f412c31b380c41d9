"""The containers of PNG and JPEG: size, scans and orientation, and the file without its other metadata.

Pillow parses EXIF, colour profiles, texts and thumbnails while it opens a file, and a broken one fails the
picture. None of them changes a digit except the orientation, which is read here. Knows nothing of Pillow.
"""

import struct
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_MAX_EXIF_ENTRIES = 512

_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
"""The chunks that hold pixels or colours. A critical chunk beyond these is kept too, for the decoder to
reject."""

_SOI_BYTES = 2
_SOS = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_STANDALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
"""Markers without a length; 0x00 is no marker, and decoders skip it like these."""
_METADATA = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
"""APP1 to APP13, APP15 and comments. JFIF (APP0) and Adobe (APP14) decide on the colours."""


class PictureFile(NamedTuple):
    """A picture's file.

    size: None if its header is broken. scans: passes over the pixels.
    kept_bytes: memory in which a decoder keeps the whole picture until its last scan, whatever the scale.
    """

    content: bytes
    size: tuple[int, int] | None
    scans: int
    orientation: int
    kept_bytes: int = 0


def read_png(content: bytes) -> PictureFile:
    """Return a PNG without metadata; a file cut off inside a chunk keeps its remainder."""
    view = memoryview(content)  # its slices copy nothing
    kept, exif = [view[:8]], b""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(content):
            break
        if kind in _PNG_PIXELS or not kind[0] & 0x20:
            kept.append(view[at:end])
        elif kind == b"eXIf":
            exif = content[at + 8 : end - 4]
        at = end
        if kind == b"IEND":
            return PictureFile(b"".join(kept), _png_size(content), 1, read_orientation(exif))
    kept.append(view[at:])
    return PictureFile(b"".join(kept), _png_size(content), 1, read_orientation(exif))


def read_jpeg(content: bytes) -> PictureFile:
    """Return a JPEG without metadata; the scans are kept as they are.

    Bytes between segments are left out: decoders skip them, and read the metadata behind them.
    In the scans' data 0xFF is never followed by the marker of a scan, so counting markers counts scans.
    """
    view = memoryview(content)
    kept, size, exif = [view[:_SOI_BYTES]], None, b""
    frame, is_progressive = b"", False
    at = _SOI_BYTES
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            at = content.find(b"\xff", at) % (len(content) + 1)  # the end if there is none
            continue
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _SOS:
            break
        if marker in _STANDALONE:
            at += 2
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : end]
        if marker in _FRAMES and len(segment) >= 5:
            height, width = struct.unpack_from(">HH", segment, 1)
            size = (width, height)
            frame, is_progressive = segment, marker in _PROGRESSIVE
        if marker == 0xE1 and segment.startswith(b"Exif\0\0") and not exif:
            exif = segment
        if marker not in _METADATA:
            kept.append(view[at:end])
        at = end
    kept.append(view[at:])
    slim = b"".join(kept)
    # From the first scan's header.
    in_several_scans = is_progressive or content[at + 4 : at + 5] != frame[5:6]
    kept_bytes = _coefficient_bytes(frame) if in_several_scans else 0
    return PictureFile(slim, size, slim.count(b"\xff\xda"), read_orientation(exif), kept_bytes)


def read_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 if it has none or cannot be read."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(min(count, _MAX_EXIF_ENTRIES)):
            tag, kind = struct.unpack_from(order + "HH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                (value,) = struct.unpack_from(
                    order + ("I" if kind == 4 else "H"), exif, start + 10 + 12 * entry
                )
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # the block ends early
        pass
    return UPRIGHT


def _coefficient_bytes(frame: bytes) -> int:
    """Return the bytes of a JPEG's coefficients. frame: its frame header (ITU T.81, B.2.2)."""
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        return 0
    height: int
    width: int
    components: int
    height, width, components = struct.unpack_from(">HHB", frame, 1)
    across = [frame[7 + 3 * i] >> 4 for i in range(components)]
    down = [frame[7 + 3 * i] & 15 for i in range(components)]
    samples = sum(h * v for h, v in zip(across, down, strict=True))
    return 2 * width * height * samples // max(1, max(across, default=0) * max(down, default=0))


def _png_size(content: bytes) -> tuple[int, int] | None:
    if content[12:16] != b"IHDR" or len(content) < 24:
        return None
    width, height = struct.unpack_from(">II", content, 16)
    return width, height
