"""What a schema cannot say, for schemathesis: which bytes are a picture, and how many make a row."""

import base64
import io

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image

LATENTS = 100
PIXELS = 784


def picture(seed: int, form: str) -> bytes:
    """A sign of random ink on a black sheet."""
    sheet = np.zeros((28, 28), np.uint8)
    sheet[6:22, 10:18] = np.random.default_rng(seed).integers(100, 256, (16, 8))
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, form)
    return file.getvalue()


SEEDS = st.integers(0, 20)
PNGS = st.builds(picture, SEEDS, st.just("PNG"))

schemathesis.openapi.format("base64-picture", PNGS.map(lambda png: base64.b64encode(png).decode()))
schemathesis.openapi.format("binary", PNGS)  # of a form's files
schemathesis.openapi.media_type("image/png", PNGS)
schemathesis.openapi.media_type("image/jpeg", st.builds(picture, SEEDS, st.just("JPEG")))
# Whole rows of pixels, and whole rows of latents too.
schemathesis.openapi.media_type(
    "application/octet-stream", st.integers(1, 2).map(lambda count: bytes(count * PIXELS * LATENTS))
)
