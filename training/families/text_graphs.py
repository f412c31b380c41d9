"""The graphs of the text model that are served: a search by text, and captions of images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.models.manifest import Outputs, TensorSpec, captioning_outputs, search_outputs
from training.captions.attributes import ANY, HIGH, LOW, STYLES
from training.captions.grammar import MAX_BYTES, Meaning, plain_captions, to_bytes
from training.datasets.splits import CLASSES, SIDE, Dataset
from training.families.batch_norm import fold_batch_norm
from training.families.pair import Pair, unit

TOP = 20
"""How many images a search returns."""

TEXT = TensorSpec(name="text", datatype="UINT8", shape=(-1, MAX_BYTES))
IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, SIDE, SIDE))


def search_specs(embedding: int, found: int) -> list[TensorSpec]:
    """The outputs of `Search`, in its order. found: how many images a search returns."""
    sizes: dict[str, tuple[int, ...]] = {
        "vector": (embedding,),
        "picture": (found, SIDE, SIDE),
        **dict.fromkeys(("score", "index", "label"), (found,)),
    }
    return _specs(search_outputs(CLASSES), sizes)


def captioning_specs(embedding: int) -> list[TensorSpec]:
    """The outputs of `Captions`, in its order."""
    return _specs(captioning_outputs(CLASSES), {"vector": (embedding,)})


def _specs(outputs: Outputs, sizes: Mapping[str, tuple[int, ...]]) -> list[TensorSpec]:
    """The outputs with the sizes that a manifest may choose."""
    return [
        TensorSpec(name=name, datatype=datatype, shape=(-1, *sizes[name]) if name in sizes else shape)
        for name, (datatype, shape) in outputs.items()
    ]


class Captions(nn.Module):
    """Reads images by captions: to images (n, 28, 28) uint8 gives digit, styles and vector.

    Probabilities of the ten digits (n, 10), of the levels of each style (n, 3, 3), and unit vectors
    (n, embedding), all float32. Nothing here is trained: the digit is the one whose caption (`a seven`) fits
    best; the level of a style is the end whose caption (`a thin seven`) fits, or ANY if neither does.
    """

    digits: Tensor
    ends: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, model: Pair) -> None:
        super().__init__()
        self.image = fold_batch_norm(model.image)
        plain = (ANY, ANY, ANY)
        self.register_buffer("digits", _vectors(model, [Meaning(digit, plain) for digit in range(CLASSES)]))
        ends = [
            Meaning(digit, (*plain[:style], level, *plain[style + 1 :]))  # type: ignore[arg-type]
            for digit in range(CLASSES)
            for style in range(len(STYLES))
            for level in (LOW, HIGH)
        ]
        self.register_buffer("ends", _vectors(model, ends))
        self.register_buffer("scale", model.log_scale.detach().exp().clone())
        self.register_buffer("bias", model.bias.detach().clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Digit, each style, vector."""
        vectors = unit(self.image(images.unsqueeze(1).float() / 255))
        digit = (self.scale * vectors @ self.digits.T + self.bias).softmax(1)
        fit = (self.scale * vectors @ self.ends.T + self.bias).sigmoid()
        ends = (digit[:, :, None, None] * fit.reshape(-1, CLASSES, len(STYLES), 2)).sum(1)
        middle = (1 - ends.sum(2, keepdim=True)).clamp(min=0)
        levels = torch.cat([ends[:, :, :1], middle, ends[:, :, 1:]], 2)
        return digit, *(levels / levels.sum(2, keepdim=True)).unbind(1), vectors


@torch.no_grad()
def _vectors(model: Pair, meanings: Sequence[Meaning]) -> Tensor:
    """A unit vector for each meaning, the mean of its plain captions' (Radford et al. 2021, 3.1.4)."""
    device = next(model.parameters()).device
    every = [torch.from_numpy(to_bytes(plain_captions(each))).to(device) for each in meanings]
    return unit(torch.stack([model.read(rows)[0].mean(0) for rows in every]))


class Search(nn.Module):
    """Finds images by text: texts (n, MAX_BYTES) uint8 to a meaning and the nearest images of a gallery.

    Gives, in the order of `search_specs`: unit vectors; the probability that the text is a caption, 0.5 at
    the threshold; probabilities of the digits, the last of none, and of each style's levels; and of the TOP
    nearest images the probability that they show what the text says, their number in the gallery, their
    label and their pixels.
    """

    vectors: Tensor
    labels: Tensor
    boxes: Tensor
    corners: Tensor
    threshold: Tensor

    def __init__(self, model: Pair, gallery: Dataset, threshold: float) -> None:
        super().__init__()
        self.model = model
        self.found = min(TOP, len(gallery))
        boxes, corners = cut(gallery.images)
        image = fold_batch_norm(model.image)
        with torch.no_grad():
            parts = torch.from_numpy(gallery.images.copy()).unsqueeze(1).split(500)  # type: ignore[no-untyped-call]
            vectors = torch.cat([unit(image(part.float() / 255)) for part in parts])
        self.register_buffer("vectors", vectors)
        self.register_buffer("labels", torch.from_numpy(gallery.labels))
        self.register_buffer("boxes", torch.from_numpy(boxes))
        self.register_buffer("corners", torch.from_numpy(corners))
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, text: Tensor) -> tuple[Tensor, ...]:
        """Vector, understood, digit, each style, score, index, label, picture."""
        vectors, digit, styles, understood = self.model.read(text)
        near, index = (vectors @ self.vectors.T).topk(self.found, dim=1)
        score = (self.model.log_scale.exp() * near + self.model.bias).sigmoid()
        return (
            vectors,
            (understood - self.threshold).sigmoid(),
            digit.softmax(1),
            *styles.softmax(2).unbind(1),
            score,
            index,
            self.labels[index],
            self._pictures(index),
        )

    def _pictures(self, index: Tensor) -> Tensor:
        """The images of these numbers, (n, TOP, 28, 28): each box back at its corner."""
        boxes = nn.functional.pad(self.boxes[index], (1, 1, 1, 1))
        side = boxes.shape[2]
        corners = self.corners[index].long()
        places = torch.arange(SIDE) - corners.unsqueeze(3) + 1  # (n, TOP, 2, 28), of rows and of columns
        places = places.clamp(0, side - 1)
        rows = places[:, :, 0, :, None].expand(-1, -1, -1, side)
        columns = places[:, :, 1, None, :].expand(-1, -1, SIDE, -1)
        return boxes.gather(2, rows).gather(3, columns)


def cut(images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, 28, 28) as boxes (n, side, side) with all their ink, and the boxes' corners (n, 2).

    MNIST's digits fit into 20x20, so that a gallery takes half of the room. The side is that of the largest.
    """
    ink: NDArray[np.bool_] = images > 0
    rows: NDArray[np.bool_] = np.asarray(ink.any(2))
    columns: NDArray[np.bool_] = np.asarray(ink.any(1))
    top, left = rows.argmax(1), columns.argmax(1)
    height = SIDE - top - rows[:, ::-1].argmax(1)
    width = SIDE - left - columns[:, ::-1].argmax(1)
    side = int(min(SIDE, np.maximum(height, width).max()))
    corners = np.minimum(np.stack([top, left], 1), SIDE - side)
    places = np.arange(side)
    across = (corners[:, 0, None] + places)[:, :, None], (corners[:, 1, None] + places)[:, None, :]
    boxes = images[np.arange(len(images))[:, None, None], across[0], across[1]]
    return np.ascontiguousarray(boxes), corners.astype(np.uint8)
