"""The distance between a network's features and those of the network that it was pruned from.

A network that only imitates probabilities may find other features. The `ood_score` reads them, so a pruned
network that keeps its source's abstains from much the same images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeatureDistance:
    """Hints, as FitNets call them (Romero et al. 2015), from the last hidden layer.

    The features are what the head reads, scaled to length 1, as the `ood_score` scales them.

    head: the network's last layer. source: a body that gives as many features, on the same device.
    """

    def __init__(self, head: nn.Module, source: nn.Module) -> None:
        self._source = source.eval()
        self._seen = torch.empty(0)
        head.register_forward_pre_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        (self._seen,) = inputs

    def of(self, images: Tensor) -> Tensor:
        """Return the mean squared distance of a batch, a scalar from 0 to 4.

        images: the batch that the network has just read.
        """
        with torch.no_grad():
            expected = functional.normalize(self._source(images))
        return (functional.normalize(self._seen.float()) - expected).square().sum(1).mean()
