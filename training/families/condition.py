"""The label as a condition of a network: a vector for each digit, appended to another vector."""

import torch
from torch import Tensor, nn

from training.datasets.splits import CLASSES


class Condition(nn.Module):
    """Appends a digit's embedding to a vector: (n, d) and labels (n,) int64 to (n, d + size).

    A label outside 0..9 has no embedding, only zeros: in an exported graph an index out of range
    would fail the whole batch.
    """

    labels: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(CLASSES, size))
        self.register_buffer("labels", torch.arange(CLASSES), persistent=False)

    def forward(self, vector: Tensor, labels: Tensor) -> Tensor:
        """The two vectors, (n, d + size)."""
        one_hot = (labels.unsqueeze(1) == self.labels).to(vector.dtype)
        return torch.cat([vector, one_hot @ self.embedding.to(vector.dtype)], 1)
