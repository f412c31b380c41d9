"""What a client does: trains a small network on its own images. Knows nothing of Flower."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.datasets.splits import CLASSES, SIDE, Dataset
from training.federated.averaging import Weights

HIDDEN = 100


@dataclass(frozen=True)
class Local:
    """One client's part of a round.

    proximal: mu of FedProx (Li et al. 2020): half of mu times the squared distance from the round's weights
    is added to the loss. 0 is FedAvg (McMahan et al. 2017).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    proximal: float


def build(seed: int) -> nn.Sequential:
    """784-100-10 with ReLU; 79,510 parameters, and no batch statistics that would have to be averaged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(SIDE * SIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def weights_of(network: nn.Module) -> list[NDArray[np.float32]]:
    """Copies of the parameters."""
    return [each.detach().numpy().copy() for each in network.parameters()]


def with_weights(weights: Weights) -> nn.Sequential:
    """A network with these parameters."""
    network = build(seed=0)
    with torch.no_grad():
        for parameter, values in zip(network.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(np.asarray(values, np.float32)))
    return network


def train_locally(weights: Weights, data: Dataset, local: Local, seed: int) -> tuple[Weights, float]:
    """Train by SGD from the round's weights; returns the new ones and their mean loss without mu."""
    network = with_weights(weights)
    start = [each.detach().clone() for each in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), local.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = _tensors(data)
    losses = []
    for _ in range(local.epochs):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), local.batch_size):
            loss = functional.cross_entropy(network(inputs[rows]), labels[rows])
            losses.append(float(loss.detach()))
            whole = loss + local.proximal / 2 * _squared_distance(network, start)
            optimizer.zero_grad()
            whole.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return weights_of(network), float(np.mean(losses))


@torch.no_grad()
def accuracy(weights: Weights, data: Dataset) -> float:
    """The share of images that a network with these weights gets right."""
    inputs, labels = _tensors(data)
    return float((with_weights(weights)(inputs).argmax(1) == labels).float().mean())


def _squared_distance(network: nn.Module, start: list[Tensor]) -> Tensor:
    pairs = zip(network.parameters(), start, strict=True)
    return torch.stack([(now - then).square().sum() for now, then in pairs]).sum()


def _tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(data.images.reshape(len(data), -1).astype(np.float32) / 255)
    return inputs, torch.from_numpy(data.labels)
