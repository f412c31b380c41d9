"""The formats of pictures: their first bytes, their media types, and which of them can be decoded here."""

import re
from importlib.util import find_spec

from service.errors import UnsupportedMedia

MEDIA_TYPES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/avif": "AVIF",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/heic": "HEIF",
}
"""The media types that are accepted, and Pillow's name of each format. HEIC needs the extra `heic`."""

_ALIASES = {
    "image/apng": "PNG",
    "image/x-png": "PNG",
    "image/jpg": "JPEG",
    "image/pjpeg": "JPEG",
    "image/x-ms-bmp": "BMP",
    "image/x-bmp": "BMP",
    "image/heif": "HEIF",
}
ANY_IMAGE = ("", "image/*")
"""What is declared if the first bytes decide between the formats."""

SIGNATURE_BYTES = 16
"""This many first bytes identify a format."""

_SIGNATURES = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8[79]a)|(?P<WEBP>RIFF.{4}WEBP)"
    rb"|(?P<BMP>BM.{4}\0{4}.{2}\0\0)|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<AVIF>\0\0\0.ftypavi[fs])"
    rb"|(?P<HEIF>\0\0\0.ftyp(?:he[ivm][cmsx]|mi[af]1|msf1))"
    rb"|(?P<JXL>\0\0\0\x0cJXL \r\n\x87\n)|(?P<JP2>\0\0\0\x0cjP  \r\n\x87\n)|(?P<PSD>8BPS\0[\1\2]\0{6})",
    re.DOTALL,
)


def sniff(content: bytes) -> str | None:
    """Return the format that the first bytes identify, or None if they are no picture's."""
    match = _SIGNATURES.match(content)
    return None if match is None else match.lastgroup


def format_of(declared: str, content: bytes) -> str | None:
    """Return the format of a picture, as declared or, if nothing is, as its first bytes say.

    None: the first bytes are no picture's. Raises UnsupportedMedia if the format cannot be decoded here.
    """
    found = sniff(content) if declared in ANY_IMAGE else MEDIA_TYPES.get(declared) or _ALIASES.get(declared)
    if found is None and declared in ANY_IMAGE:
        return None
    if found is None or not can_decode(found):
        seen = f"image is a {found}" if found else f"image is declared as {declared[:80]!r}"
        raise UnsupportedMedia(f"{seen}, expected one of {', '.join(decodable())}")
    return found


def decodable() -> list[str]:
    """Return the names of the formats that can be decoded here."""
    return [name for name in MEDIA_TYPES.values() if can_decode(name)]


def accepted_media_types() -> tuple[str, ...]:
    """Return the media types of the formats that can be decoded here."""
    return tuple(kind for kind, name in MEDIA_TYPES.items() if can_decode(name))


def can_decode(name: str) -> bool:
    """Whether a format can be decoded here; some codecs are optional parts of Pillow."""
    if name == "HEIF":
        return find_spec("pillow_heif") is not None
    if name in ("WEBP", "AVIF"):
        return find_spec(f"PIL._{name.lower()}") is not None
    return name in MEDIA_TYPES.values()
