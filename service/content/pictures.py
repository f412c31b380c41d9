"""Picture files to pictures: bounded before anything is decoded, upright, with 8 bits per channel.

Any bytes give a picture or a RequestError. Knows nothing of models.
"""

import io
import logging
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from service.content import picture_kinds, png_strips
from service.content.picture_files import UPRIGHT, PictureFile, read_jpeg, read_orientation, read_png
from service.errors import InkserveError, InvalidInput, PayloadTooLarge

logger = logging.getLogger(__name__)

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""The errors that Pillow's plugins raise for broken files."""

_PLUGINS = {"WEBP": "WebP", "AVIF": "Avif", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff"}
_READERS = {"PNG": read_png, "JPEG": read_jpeg}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn that makes a picture upright, for each EXIF orientation."""

REDUCED_PIXELS = 1_500_000
"""PNGs and JPEGs with more pixels are reduced to at most this many while they are decoded. A PNG of 16
megapixels takes 5 to 10 MB instead of 27 to 187. Each scale of a JPEG has a quarter of the last one's."""
_JPEG_SCALES = (1, 2, 4, 8)

_CODEC_BYTES = {"WEBP": 12, "AVIF": 6, "HEIF": 8, "GIF": 1, "TIFF": 4}
"""What decoders keep for each pixel besides Pillow's picture. WebP and AVIF are measured (252 and 144 MB in
all for 16 megapixels); the others are estimates, for TIFF of a single strip."""
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 7, "I;16B": 7, "I;16L": 7, "I": 20, "F": 20}
_WIDE_BYTES = 4
"""The bytes of a pixel by mode: Pillow's, and what `eight_bits` adds. Any other mode has _WIDE_BYTES."""

_GRAPHICS = ("PNG", "GIF", "BMP")
_GRAPHICS_BYTES = 12 * 1024 * 1024
"""What a picture that is no photo may take at most: a few kilobytes of it can be 16 megapixels."""

BAND_ROWS = 128
"""`in_bands` changes this many rows at a time."""

ON_LOOP_PIXELS = 256 * 256
ON_LOOP_SCANS = 16


class TooLargeForLoop(InkserveError):
    """Decoding would block the event loop for long; a decoder process must do it."""


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Bounds on pictures, see the settings of the same names."""

    max_image_pixels: int = 16_000_000
    max_jpeg_pixels: int = 64_000_000
    max_jpeg_scans: int = 100
    max_request_pixels: int = 64_000_000
    max_picture_bytes: int = 192 * 1024 * 1024


@dataclass(slots=True)
class PixelBudget:
    """The pixels that one request may still decode.

    on_loop: raise TooLargeForLoop if decoding would take longer than a few milliseconds.
    """

    limits: PictureLimits = field(default_factory=PictureLimits)
    on_loop: bool = False
    spent: int = 0

    def check_file(self, name: str, file: PictureFile) -> None:
        """Check a file's header, before the picture is opened. Raises PayloadTooLarge, TooLargeForLoop."""
        if name == "JPEG" and file.scans > self.limits.max_jpeg_scans:
            raise PayloadTooLarge(
                f"image has {file.scans} scans, expected at most {self.limits.max_jpeg_scans}"
            )
        if self.on_loop and file.scans > ON_LOOP_SCANS:
            raise TooLargeForLoop
        if file.size is not None:
            self.check_size(name, file.size)

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Check the size that a file declares. Raises PayloadTooLarge, TooLargeForLoop."""
        most = self.limits.max_image_pixels
        most = max(most, self.limits.max_jpeg_pixels) if name == "JPEG" else most
        _check_pixels(size, most)
        if self.on_loop and self.spent + size[0] * size[1] > ON_LOOP_PIXELS:
            raise TooLargeForLoop

    def check_memory(self, name: str, picture: Image.Image, kept_bytes: int) -> None:
        """Check the memory that a picture takes whole, before it is decoded. Raises PayloadTooLarge."""
        each = _MODE_BYTES.get(picture.mode, _WIDE_BYTES) + _CODEC_BYTES.get(name, 0)
        seen = picture.width * picture.height * each + kept_bytes
        most = self.limits.max_picture_bytes
        most = min(most, _GRAPHICS_BYTES) if name in _GRAPHICS else most
        if seen > most:
            raise PayloadTooLarge(
                f"image ({name}, {picture.width} x {picture.height} pixels) takes {seen} bytes to decode, "
                f"expected at most {most}, or a PNG without interlacing"
            )

    def charge(self, size: tuple[int, int]) -> None:
        """Take the pixels of a picture that is about to be decoded. Raises PayloadTooLarge."""
        _check_pixels(size, self.limits.max_image_pixels)
        self.spent += size[0] * size[1]
        if self.spent > self.limits.max_request_pixels:
            raise PayloadTooLarge(
                f"request has pictures of over {self.limits.max_request_pixels} pixels together, expected "
                f"at most {self.limits.max_request_pixels}"
            )


def open_picture(content: bytes, budget: PixelBudget, declared: str = "") -> Image.Image:
    """Decode a picture: upright, its first frame, with 8 bits per channel.

    declared: its media type; if empty or image/*, the first bytes decide.
    Raises InvalidInput for a broken file, PayloadTooLarge, UnsupportedMedia.
    """
    name = picture_kinds.format_of(declared, content)
    found = picture_kinds.sniff(content)
    if name is None or (found != name and (found or name in _READERS)):
        expected = name or ", ".join(picture_kinds.decodable())
        raise InvalidInput(
            f"image of {len(content)} bytes begins with {content[:8].hex(' ')}, expected {expected}"
        )
    if budget.on_loop and name not in _READERS:
        raise TooLargeForLoop
    try:
        return _decode(name, content, budget)
    except InkserveError:
        raise
    except MemoryError:
        raise PayloadTooLarge(f"image needs too much memory to decode, expected a smaller {name}") from None
    except UnidentifiedImageError:
        raise InvalidInput(
            f"image is a broken {name}: its header cannot be read, expected a whole file"
        ) from None
    except PICTURE_ERRORS as error:
        raise InvalidInput(f"image is a broken {name}: {error}, expected a whole file") from None
    except Exception as error:  # a plugin's own mistake about a broken file
        logger.warning("%s of %d bytes cannot be decoded; rejecting it", name, len(content), exc_info=error)
        raise InvalidInput(f"image is a broken {name}: {error}, expected a whole file") from None


def eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture with 8 bits per channel.

    Greys of 16 bits are scaled by the highest bit that the picture uses: cameras and scanners store 10 or 12
    bits in 16. Other wide greys (TIFF) are scaled by their own range.
    """
    if picture.mode.startswith("I;16"):
        pixels = np.asarray(picture)
        shift = max(int(pixels.max(initial=0)).bit_length() - 8, 0)
        return Image.fromarray((pixels >> shift).astype(np.uint8))
    if picture.mode in ("I", "F"):
        pixels = np.array(picture, np.float64)
        if not np.isfinite(pixels).all():
            raise InvalidInput("image has pixels that are not finite, expected numbers")
        lowest, highest = pixels.min(), pixels.max()
        if picture.mode == "F" or lowest < 0 or highest > 255:
            pixels -= lowest
            pixels *= 255 / max(highest - lowest, 1e-300)
        return Image.fromarray(np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels).astype(np.uint8))
    return picture


def in_bands(
    picture: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image], factor: int = 1
) -> Image.Image:
    """Return a picture changed band by band: Pillow's copies of a whole one take 4 bytes per pixel each.

    change: returns a band in `mode`, reduced by `factor`, as `Image.reduce` does.
    """
    width, height = picture.size
    if height <= BAND_ROWS:
        return change(picture)
    changed = Image.new(mode, (-(-width // factor), -(-height // factor)))
    rows = max(1, BAND_ROWS // factor) * factor
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        changed.paste(change(band), (0, top // factor))
    return changed


def _decode(name: str, content: bytes, budget: PixelBudget) -> Image.Image:
    read = _READERS.get(name)
    file = PictureFile(content, None, 1, UPRIGHT) if read is None else read(content)
    budget.check_file(name, file)
    _import_plugin(name)
    with warnings.catch_warnings() if read is None else nullcontext():
        if read is None:
            warnings.simplefilter("ignore")  # Pillow warns about many pixels; the budget rejects them
        picture = Image.open(io.BytesIO(file.content), formats=(name,))
        budget.check_size(name, picture.size)  # in an odd file Pillow may find another size than we did
        decoded = _loaded(name, picture, file, budget)
    orientation = file.orientation if read is not None else _orientation(name, decoded)
    turn = _TURNS.get(orientation)
    upright = decoded if turn is None else decoded.transpose(turn)
    return eight_bits(upright)


def _loaded(name: str, picture: ImageFile, file: PictureFile, budget: PixelBudget) -> Image.Image:
    """Decode an opened picture: a large PNG or JPEG at a reduced scale, any other within its bytes."""
    pixels = picture.width * picture.height
    if name == "PNG" and pixels > REDUCED_PIXELS and png_strips.can_be_read(file.content, picture.size):
        budget.charge(picture.size)
        return png_strips.read_reduced(file.content, math.ceil(math.sqrt(pixels / REDUCED_PIXELS)))
    if name == "JPEG" and pixels > REDUCED_PIXELS:
        scale = next((each for each in _JPEG_SCALES if pixels <= REDUCED_PIXELS * each**2), _JPEG_SCALES[-1])
        picture.draft(None, (max(1, picture.width // scale), max(1, picture.height // scale)))
    budget.charge(picture.size)
    budget.check_memory(name, picture, file.kept_bytes)
    picture.load()
    return picture


def _orientation(name: str, picture: Image.Image) -> int:
    """Return the orientation of a picture that is neither PNG nor JPEG."""
    if name == "TIFF":
        value = getattr(picture, "tag_v2", {}).get(274, UPRIGHT)
        return value if isinstance(value, int) else UPRIGHT
    if name == "HEIF":
        return UPRIGHT  # libheif has turned the picture
    exif = picture.info.get("exif", b"")
    return read_orientation(exif) if isinstance(exif, bytes) else UPRIGHT


def _import_plugin(name: str) -> None:
    """Import Pillow's plugin for a format: only those for common formats are imported by Image.open."""
    if name == "HEIF":
        import_module("pillow_heif").register_heif_opener()
    elif name in _PLUGINS:
        import_module(f"PIL.{_PLUGINS[name]}ImagePlugin")


def _check_pixels(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise PayloadTooLarge(f"image has {width} x {height} pixels, expected at most {most}")
