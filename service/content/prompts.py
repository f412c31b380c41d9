"""Prompts: text as rows of a model's input, and which drawn images suit a text best.

Training measures with the same functions as the service answers with. Imports only numpy.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 32
"""Images drawn for each one that a prompt with a style asks for; the nearest to the text is kept."""


def text_rows(texts: Sequence[str], length: int) -> NDArray[np.uint8]:
    """Return texts as UTF-8, each padded with zeros: (n, length). Raises ValueError for a longer one."""
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        data = text.encode()
        if len(data) > length:
            raise ValueError(f"text has {len(data)} bytes, expected at most {length}")
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


def nearest(text: NDArray[np.float32], images: NDArray[np.float32], candidates: int) -> NDArray[np.int64]:
    """Return the row of the image nearest to a text in each group of `candidates` rows: (groups,).

    text: its unit vector, (size,). images: unit vectors, (groups * candidates, size). Of equals the first.
    """
    best: NDArray[np.int64] = (images @ text).reshape(-1, candidates).argmax(axis=1)
    return best + np.arange(len(best)) * candidates
