"""Picture files of every format that the service accepts."""

import io
from importlib import import_module

import numpy as np
from PIL import Image

from service.content.picture_kinds import MEDIA_TYPES, can_decode

FORMATS = [name for name in MEDIA_TYPES.values() if can_decode(name)]


def seven(scale: int = 4) -> Image.Image:
    """A thick seven on a light sheet, drawn on a grid of 14 x 14."""
    grid = np.full((14, 14), 230, np.uint8)
    grid[3:5, 4:10] = 20
    for step in range(5):
        grid[5 + step, 8 - step // 2 : 10 - step // 2] = 20
    return Image.fromarray(np.kron(grid, np.ones((scale, scale), np.uint8)))


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    """Encode a picture in a format, by Pillow's name of it."""
    if name == "HEIF":
        import_module("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    image.convert("RGB" if name in ("WEBP", "AVIF", "HEIF") else image.mode).save(file, name, **options)
    return file.getvalue()
