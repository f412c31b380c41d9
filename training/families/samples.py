"""The samples that a generator draws after an epoch for its judge, and the epoch that they choose."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.content.latents import draw_latents

# The seed of the z whose samples are judged: not that of the published figures.
VALIDATION_SEED = 2
PART_ROWS = 500


@torch.no_grad()
def draw_samples(
    generate: Callable[[Tensor, Tensor], Tensor],
    labels: NDArray[np.int64],
    latent: int,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Draw one image for each label, always from the same z: (n, 28, 28).

    generate: from z (m, latent) float32 and labels (m,) int64 to images (m, 28, 28) uint8.
    """
    z = torch.from_numpy(draw_latents(VALIDATION_SEED, len(labels), latent)).to(device)
    wanted = torch.from_numpy(labels).to(device)
    parts = [slice(i, i + PART_ROWS) for i in range(0, len(labels), PART_ROWS)]
    return np.concatenate([generate(z[part], wanted[part]).cpu().numpy() for part in parts])


def chosen_epoch(history: Sequence[Mapping[str, float]]) -> str:
    """The epoch of the published weights, for the card."""
    judged = [line for line in history if "validation_distance" in line]
    if not judged:
        return "the last epoch"
    best = min(judged, key=lambda line: line["validation_distance"])
    return (
        f"epoch {best['epoch']:.0f}, whose samples were closest to the validation images (Fréchet distance "
        f"{best['validation_distance']:.2f} in the judge's features)"
    )
