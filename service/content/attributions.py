"""Where a classifier looked: occlusion, LIME and integrated gradients, as rows to run and the maps they give.

Knows nothing of models, queues or HTTP: it makes rows, and reads what a model answered to them.
An image is one row of an image tensor; a map is (height, width) float32, above 0 where a pixel speaks for the
target. The background is 0, what MNIST's models see where there is no ink.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.models.manifest import ImageLayout
from service.models.tensors import Array

Map = NDArray[np.float32]
Scores = NDArray[np.float32]
"""The target's probability for each row of a `Perturbation`, (1 + count,): the image's own first."""

KERNEL_WIDTH = 0.25
RIDGE = 1.0
"""The width of LIME's kernel and the strength of its ridge regression, as in Ribeiro's own lime_image.py
(github.com/marcotcr/lime)."""

MAX_STEPS = 1024
"""Of integrated gradients, for one image."""


class Perturbation(Protocol):
    """A method that compares an image with copies of it, in which parts are replaced by the background."""

    def count(self, layout: ImageLayout, /) -> int:
        """Return how many copies of an image there will be."""
        ...

    def rows(self, image: Array, layout: ImageLayout) -> Array:
        """Return the image and its copies, (1 + count, ...), of the image's dtype."""
        ...

    def attribute(self, image: Array, layout: ImageLayout, scores: Scores, /) -> Map:
        """Return the map that the rows' scores make."""
        ...


@dataclass(frozen=True, slots=True)
class Occlusion:
    """Occlusion by a square (Zeiler and Fergus 2014): how far the probability falls when it hides a pixel.

    A pixel gets the mean fall over the squares that hide it, 0 if there is none. As in captum, the last
    square of a line is the first one that reaches the border, and what reaches beyond is cut off.
    patch: a square's side. stride: from one square to the next, both in pixels.
    """

    patch: int
    stride: int

    def count(self, layout: ImageLayout, /) -> int:
        """See `Perturbation`."""
        return len(self._starts(layout.height)) * len(self._starts(layout.width))

    def rows(self, image: Array, layout: ImageLayout) -> Array:
        """See `Perturbation`."""
        rows = _copies(image, 1 + self.count(layout))
        planes = _planes(rows, layout)
        for row, square in enumerate(self._squares(layout), 1):
            planes[row][square] = 0
        return rows

    def attribute(self, _: Array, layout: ImageLayout, scores: Scores, /) -> Map:
        """See `Perturbation`."""
        falls = (scores[0] - scores[1:]).tolist()
        total = np.zeros((layout.height, layout.width), np.float32)
        times = np.zeros_like(total)
        for fall, square in zip(falls, self._squares(layout), strict=True):
            total[square] += fall
            times[square] += 1
        return np.divide(total, np.maximum(times, 1), dtype=np.float32)

    def _starts(self, size: int) -> range:
        last = -(-max(0, size - self.patch) // self.stride) * self.stride
        return range(0, last + 1, self.stride)

    def _squares(self, layout: ImageLayout) -> list[tuple[slice, slice]]:
        return [
            (slice(y, y + self.patch), slice(x, x + self.patch))
            for y in self._starts(layout.height)
            for x in self._starts(layout.width)
        ]


@dataclass(frozen=True, slots=True)
class Lime:
    """LIME (Ribeiro, Singh and Guestrin 2016): a linear model of which superpixels of the image are there.

    The superpixels are the squares of a grid that hold ink; the others could not change the image. Each copy
    keeps every superpixel with a probability of one half. A ridge regression, weighted by how much the copy
    keeps, gives each superpixel a coefficient, which all of its pixels get.
    patch: a square's side in pixels. samples: the number of copies. seed: of the choice of what they keep.
    """

    patch: int
    samples: int
    seed: int

    def count(self, _: ImageLayout, /) -> int:
        """See `Perturbation`."""
        return self.samples

    def rows(self, image: Array, layout: ImageLayout) -> Array:
        """See `Perturbation`."""
        segments, kept = self.design(image, layout)
        there = np.concatenate(
            [kept, np.ones((len(kept), 1), np.bool_)], 1
        )  # the pixels without a superpixel
        rows = _copies(image, len(kept))
        _planes(rows, layout)[~there[:, segments]] = 0
        return rows

    def attribute(self, image: Array, layout: ImageLayout, scores: Scores, /) -> Map:
        """See `Perturbation`."""
        segments, kept = self.design(image, layout)
        coefficients = weighted_ridge(kept, scores, kernel(kept))
        attributed: Map = np.append(coefficients, 0).astype(np.float32)[segments]
        return attributed

    def design(self, image: Array, layout: ImageLayout) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the superpixels, and which of them each row keeps.

        segments: (height, width), the number of each pixel's superpixel, -1 for none.
        kept: (1 + samples, superpixels); the first row is the image itself.
        """
        ink = _planes(image[None], layout)[0].any(-1)
        down, across = (np.arange(size) // self.patch for size in ink.shape)
        grid = down[:, None] * (across[-1] + 1) + across
        inked = np.unique(grid[ink])
        found = np.searchsorted(inked, grid).clip(0, max(0, len(inked) - 1))
        segments = np.where(inked[found] == grid, found, -1) if len(inked) else np.full(grid.shape, -1)
        rng = np.random.default_rng(self.seed)
        kept = rng.integers(0, 2, (self.samples, len(inked)), np.uint8).astype(np.bool_)
        return segments, np.concatenate([np.ones((1, len(inked)), np.bool_), kept])


def kernel(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return LIME's weight of each row, (rows,): exponential in the cosine distance from keeping all."""
    cosines = np.sqrt(kept.mean(1)) if kept.shape[1] else np.ones(len(kept))
    weights: NDArray[np.float64] = np.exp(-((1 - cosines) ** 2) / (2 * KERNEL_WIDTH**2))
    return weights


def weighted_ridge(
    kept: NDArray[np.bool_], scores: Scores, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the coefficients of a weighted ridge regression whose intercept is free, (superpixels,)."""
    share = weights / weights.sum()
    columns = kept - share @ kept
    targets = scores - share @ scores
    normal = columns.T @ (weights[:, None] * columns) + RIDGE * np.eye(kept.shape[1])
    solved: NDArray[np.float64] = np.linalg.solve(normal, columns.T @ (weights * targets))
    return solved


@dataclass(frozen=True, slots=True)
class IntegratedGradients:
    """Integrated gradients (Sundararajan, Taly and Yan 2017), on the line from the background to the image.

    The integral is a Riemann sum at the middles of equal steps. The map's sum is the image's score less the
    background's, up to the sum's error, which in the mean over 60 of MNIST's validation images is for cnn:
    0.19 with 32 steps, 0.019 with 64, 0.005 with 128. Almost all of a probability's rise lies within a
    twentieth of the line, so Gauss-Legendre nodes, densest at its ends, do worse: 0.25, 0.034, 0.007.
    steps: their number, at most MAX_STEPS.
    """

    steps: int

    def rows(self, image: Array) -> NDArray[np.float32]:
        """Return the images on the line whose gradients are needed, (steps, ...) float32."""
        middles = (np.arange(self.steps, dtype=np.float32) + np.float32(0.5)) / np.float32(self.steps)
        rows: NDArray[np.float32] = np.multiply.outer(middles, image.astype(np.float32))
        return rows

    def attribute(self, image: Array, layout: ImageLayout, gradients: NDArray[np.float32]) -> Map:
        """Return the map. gradients: of the score by each row's pixels, (steps, ...)."""
        whole = image * gradients.mean(0)
        summed: Map = _planes(whole[None], layout)[0].sum(-1, dtype=np.float32)
        return summed


def _copies(image: Array, count: int) -> Array:
    return np.repeat(image[None], count, axis=0)


def _planes(rows: Array, layout: ImageLayout) -> Array:
    """Return a view of rows as (rows, height, width, channels)."""
    if rows.ndim == 3:
        return rows[..., None]
    return np.moveaxis(rows, 1, -1) if layout.channels_first else rows
