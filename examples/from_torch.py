"""Export a PyTorch classifier that takes normalised floats, for a service that takes pictures.

    python examples/from_torch.py MODELS_DIR

Trains a network that tells circles from squares, writes MODELS_DIR/shapes/1/model.onnx and a picture of each
shape beside the models. For a network of your own, keep `Served` and `export`. Needs the extra `training`.
"""

import json
import sys
from pathlib import Path

import onnx
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

SIDE = 32
SHAPES = ("circle", "square")
STEPS = 60
BATCH_SIZE = 64


class Served(nn.Module):
    """A network and what a request lacks: it takes pixels and gives probabilities.

    mean, std: the normalisation that the network was trained with, for each channel, of pixels in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def logits(self, images: Tensor) -> Tensor:
        """Return (n, classes) float32. images: (n, height, width, channels) uint8."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities, (n, classes) float32. images: as for `logits`."""
        return self.logits(images).softmax(dim=1)


def export(served: Served, folder: Path, labels: tuple[str, ...], height: int, width: int) -> None:
    """Write folder/model.onnx, which describes itself: it needs no manifest.

    height, width: of the pictures that the network takes. The service scales others to them.
    """
    channels = served.mean.shape[0]
    program = torch.onnx.export(
        served.eval(),
        (torch.zeros(2, height, width, channels, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),  # without it, the graph takes batches of 2 alone
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(
        model, {"inkserve.task": "classification", "inkserve.labels": json.dumps(labels)}
    )
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def draw(shape: str, box: tuple[float, float, float, float]) -> Image.Image:
    """Return a picture of a shape, orange on blue. box: its left, upper, right and lower end in pixels."""
    picture = Image.new("RGB", (SIDE, SIDE), (30, 60, 160))
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=(240, 150, 20))
    return picture


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return pictures (n, SIDE, SIDE, 3) uint8 of shapes at any place, and their classes (n,)."""
    classes = torch.randint(len(SHAPES), (BATCH_SIZE,), generator=generator)
    pictures = []
    for number in classes.tolist():
        size, left, top = torch.rand(3, generator=generator).tolist()
        size = 10 + 14 * size
        left, top = left * (SIDE - size - 1), top * (SIDE - size - 1)
        pixels = draw(SHAPES[number], (left, top, left + size, top + size)).tobytes()
        pictures.append(torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(SIDE, SIDE, 3))
    return torch.stack(pictures), classes


def train() -> Served:
    """Return a small convolutional network, trained for some seconds."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, len(SHAPES))),
    )
    served = Served(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        pictures, classes = batch(generator)
        loss = nn.functional.cross_entropy(served.logits(pictures), classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return served


def main() -> None:
    """Train, export, and draw a picture of each shape to post."""
    models_dir = Path(sys.argv[1])
    export(train(), models_dir / "shapes" / "1", SHAPES, SIDE, SIDE)
    for shape in SHAPES:
        draw(shape, (8, 6, 24, 22)).resize((320, 320)).save(models_dir / f"{shape}.png")


if __name__ == "__main__":
    main()
