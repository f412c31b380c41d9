"""A split's images and labels as torch tensors."""

import torch
from torch import Tensor

from training.datasets.splits import Dataset


def to_tensors(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) uint8 and labels (n,) int64, on the device."""
    images = torch.from_numpy(dataset.images.copy()).unsqueeze(1).to(device)
    return images, torch.from_numpy(dataset.labels).to(device)
