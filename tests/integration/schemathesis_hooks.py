"""What a schema cannot say, for schemathesis: which bytes are a picture, and how many make a row."""

import base64
import io
from importlib import import_module
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image

FORMS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/avif": "AVIF",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/heic": "HEIF",
}
COLOURED = ("WEBP", "AVIF", "HEIF")
"""The formats that have no greys."""

LATENTS = 100
DECODED = 32
"""The latents of /decode: those of the default encoder's generator."""
PIXELS = 784


def picture(seed: int, form: str) -> bytes:
    """A sign of random ink on a black sheet."""
    sheet = np.zeros((28, 28), np.uint8)
    sheet[6:22, 10:18] = np.random.default_rng(seed).integers(100, 256, (16, 8))
    if form == "HEIF":
        import_module("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    Image.fromarray(sheet).convert("RGB" if form in COLOURED else "L").save(file, form)
    return file.getvalue()


SEEDS = st.integers(0, 20)
PNGS = st.builds(picture, SEEDS, st.just("PNG"))

schemathesis.openapi.format("base64-picture", PNGS.map(lambda png: base64.b64encode(png).decode()))
schemathesis.openapi.format("binary", PNGS)  # of a form's files
# By default schemathesis sends blank pictures of some types.
for kind, form in FORMS.items():
    schemathesis.openapi.media_type(kind, st.builds(picture, SEEDS, st.just(form)))
# Whole rows of pixels, and whole rows of latents too.
schemathesis.openapi.media_type(
    "application/octet-stream", st.integers(1, 2).map(lambda count: bytes(count * PIXELS * LATENTS))
)
schemathesis.openapi.media_type(
    "application/x-npy", SEEDS.map(lambda count: npy((count + 1, PIXELS), np.uint8))
)


def npy(shape: tuple[int, ...], dtype: type) -> bytes:
    """A .npy file of zeros."""
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


@schemathesis.hook
def before_call(context: object, case: schemathesis.Case[Any], kwargs: object) -> None:
    """Send /decode latents of its own: a media type's bodies are the same for all operations."""
    del context, kwargs
    if case.path == "/decode" and isinstance(case.body, bytes):
        if case.media_type == "application/octet-stream":
            case.body = bytes(2 * DECODED * 4)
        elif case.media_type == "application/x-npy":
            case.body = npy((2, DECODED), np.float32)
