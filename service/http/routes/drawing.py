"""What /generate draws: which latent and which label each image has, and the images, verified if asked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult
from service.content.latents import draw_latents
from service.http.routes.prompts import Asker, Understood
from service.http.routes.shared import Target, off_loop
from service.http.routes.verification import REDRAWS, Judge, Verdict, agreeing, redraw_seed
from service.models.tensors import Array

LATENTS_ON_LOOP_ROWS = 32
"""At most this many latents are drawn on the event loop. Handing them to a thread costs the loop half as much
with 32 rows, and a fifth with 128; with 8 it costs the same."""


@dataclass(frozen=True, slots=True)
class Suiting:
    """Images that suit a prompt. candidates: drawn for each one, of which the nearest is kept."""

    search: Target
    understood: Understood
    candidates: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """Images to draw.

    seed: of the latents; None if they are `z`, (latents, size). rows: each image's row of the latents.
    labels: each image's label input, None for a model without one. suiting: if there is a prompt.
    Image i depends only on the seed, its row and its label, and on the prompt.
    """

    target: Target
    seed: int | None
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    z: Array | None = None
    suiting: Suiting | None = None

    async def draw(self, asker: Asker) -> InferenceResult:
        """Return the images, the first output."""
        return await self._draw(asker, self.target, self.seed, np.arange(len(self.rows)))

    async def draw_verified(
        self, asker: Asker, judge: Judge, *, reject: bool
    ) -> tuple[InferenceResult, Verdict]:
        """Return the images and what the judge read in them.

        reject: draw misread images again, at most REDRAWS times, with the latents of `redraw_seed`; an image
        that is still misread stays as it was drawn last.
        """
        assert self.labels is not None  # the judge compares them
        result = await self.draw(asker)
        target = Target(self.target.manifest, result.version)
        labels = [target.manifest.labels[index] for index in self.labels]
        images = result.outputs[0]
        read, reading = await judge.read(asker, images)
        asker.call.count_agreement(target.manifest.name, agreeing(labels, read), len(read))
        total = summed(result, reading)
        draws = np.ones(len(read), np.int64)
        for redraw in range(1, REDRAWS + 1):
            which = np.flatnonzero([label != seen for label, seen in zip(labels, read, strict=True)])
            if not reject or self.seed is None or not len(which):
                break
            again = await self._draw(asker, target, redraw_seed(self.seed, redraw), which)
            seen, reading = await judge.read(asker, again.outputs[0])
            asker.call.count_agreement(
                target.manifest.name, agreeing([labels[index] for index in which], seen), len(which)
            )
            images = images.copy() if redraw == 1 else images
            images[which] = again.outputs[0]
            for index, label in zip(which, seen, strict=True):
                read[index] = label
            draws[which] += 1
            total = summed(summed(total, again), reading)
        total = total._replace(version=result.version, outputs=(images, *result.outputs[1:]))
        return total, judge.verdict(labels, read, draws)

    async def _draw(
        self, asker: Asker, target: Target, seed: int | None, which: NDArray[np.int64]
    ) -> InferenceResult:
        """Draw some of the images. which: their numbers."""
        each = 1 if self.suiting is None else self.suiting.candidates
        rows = (self.rows[which, None] * each + np.arange(each)).ravel()
        z = await self._latents(seed, rows)
        inputs = {"z": z}
        if self.labels is not None:
            inputs["label"] = np.repeat(self.labels[which], each)
        result = await asker.infer(target, inputs, len(z))
        if self.suiting is not None and each > 1:
            kept = await asker.choose(self.suiting.search, self.suiting.understood, result.outputs[0])
            result = result._replace(outputs=(result.outputs[0][kept],))
        return result

    async def _latents(self, seed: int | None, rows: NDArray[np.int64]) -> Array:
        whole = np.array_equal(rows, np.arange(len(rows)))  # nearly always: no copy
        if self.z is not None:
            return self.z if whole and len(rows) == len(self.z) else self.z[rows]
        assert seed is not None  # the latents are its, if they are not given
        spec = self.target.manifest.input("z")
        assert spec is not None  # a generator's manifest has it
        count = int(rows.max()) + 1
        latents = await off_loop(count > LATENTS_ON_LOOP_ROWS, draw_latents, seed, count, spec.shape[1])
        return latents if whole else latents[rows]


def summed(first: InferenceResult, second: InferenceResult) -> InferenceResult:
    """Return the second result with the seconds of both."""
    return second._replace(
        queue_seconds=first.queue_seconds + second.queue_seconds,
        compute_seconds=first.compute_seconds + second.compute_seconds,
    )
