"""Images as the frames of an animation. Knows nothing of HTTP or models."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WEBP = "image/webp"
APNG = "image/apng"

FRAME_MILLISECONDS = 120


def animation(images: NDArray[np.uint8], kind: str) -> bytes:
    """Encode (frames, height, width) or (frames, height, width, 3) uint8, forth and back, for ever.

    kind: WEBP or APNG, both without loss.
    """
    frames = [Image.fromarray(image) for image in (*images, *images[-2:0:-1])]
    file = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": FRAME_MILLISECONDS, "loop": 0}
    if kind == WEBP:
        frames[0].save(file, "WEBP", lossless=True, **options)
    else:
        frames[0].save(file, "PNG", **options)
    return file.getvalue()
