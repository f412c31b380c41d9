"""A published model's weights, read back from its graph, as what another network begins with.

Knows nothing of pruning.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from service.models.manifest import MODEL_FILE
from training.datasets.splits import Splits
from training.errors import SourceError
from training.onnx_files import open_session
from training.sources import check_source
from training.versions import read_verified

# The number of validation images on which the network that was read is compared with the graph.
COMPARED_IMAGES = 64


def take_shapes(network: nn.Module, folder: Path) -> None:
    """Give a network's convolutions and linear layers the shapes that they have in a published graph.

    Their weights then are of no use. A layer that the graph lacks is left as it is.
    """
    shapes = {each.name: tuple(each.dims) for each in onnx.load(folder / MODEL_FILE).graph.initializer}
    for prefix, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for name, weights in layer.named_parameters():
                if (shape := shapes.get(f"{prefix}.{name}")) is not None:
                    setattr(layer, name, nn.Parameter(weights.new_zeros(shape)))


def load_graph(network: nn.Module, folder: Path, splits: Splits, tolerance: float) -> None:
    """Load the weights of a published version's graph into a network, and compare it with the graph.

    network: without batch normalisation, which the graph has folded; takes images (n, 1, 28, 28) float in
        0..1, gives logits (n, 10). Its tensors have the names that the exported graph gave them.
    tolerance: the largest difference of any probability.
    Raises SourceError, EvaluationError or RepositoryError unless the folder holds a classifier of the same
    data and of this network.
    """
    check_source(read_verified(folder), splits)
    take_weights(network, folder)
    path = folder / MODEL_FILE
    images = splits.validation.images[:COMPARED_IMAGES]
    (expected,) = open_session(path).run(["probabilities"], {"images": images})
    with torch.no_grad():
        made = network(torch.from_numpy(images.copy()).unsqueeze(1).float() / 255).softmax(dim=1)
    difference = float(np.abs(made.numpy() - expected).max())
    if not difference <= tolerance:
        raise SourceError(
            f"{path} is the graph of another network: a probability differs by {difference:.3g} from that of "
            f"the network with its weights, expected at most {tolerance:.3g}"
        )


def take_earlier(network: nn.Module, weights: Mapping[str, Tensor], folder: Path, widths: str) -> None:
    """Load the weights of an earlier network of the same family.

    folder: where they come from. widths: the hyperparameters that decide their shapes, for the error. Raises
    SourceError if the network has other layers.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise SourceError(
            f"{folder} holds a network with other layers, expected the {widths} of this run"
        ) from None


def take_weights(network: nn.Module, folder: Path) -> None:
    """Load the weights of a published version's graph into a network of the kind that was exported.

    The graph may hold a weight with further axes of one element. Raises SourceError if it lacks a weight or
    has it in another shape.
    """
    path = folder / MODEL_FILE
    held = {each.name: each for each in onnx.load(path).graph.initializer}
    weights = {}
    for name, tensor in network.state_dict().items():
        seen = tuple(held[name].dims) if name in held else None
        if seen is None or _longer_than_one(seen) != _longer_than_one(tensor.shape):
            raise SourceError(
                f"{path} is the graph of another network: {name} is "
                f"{'missing' if seen is None else seen}, expected {tuple(tensor.shape)}"
            )
        weights[name] = torch.from_numpy(numpy_helper.to_array(held[name]).copy()).reshape(tensor.shape)
    network.load_state_dict(weights)


def _longer_than_one(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]
