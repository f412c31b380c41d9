"""A normalising flow of affine couplings, conditioned on the label: the learned prior of a VAE.

It turns z from N(0, 1) into w, and back, both in closed form (RealNVP; Dinh et al. 2017). A prior that is
fitted to the encoder's posteriors leaves no room between them, from which a decoder would draw no digit.
"""

from typing import cast

import torch
from torch import Tensor, nn

from training.families.condition import Condition

# A coupling scales by e^-2 to e^2: without a bound a large step of the optimiser could overflow exp.
LARGEST_LOG_SCALE = 2.0


class Coupling(nn.Module):
    """Scales and shifts one half of a vector by what a small network makes of the other and the label.

    From and to (n, size); at first it changes nothing, because the network's last layer is zero.
    """

    def __init__(self, size: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.kept = size // 2
        self.condition = Condition(embedding)
        self.network = nn.Sequential(
            nn.Linear(self.kept + embedding, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * (size - self.kept)),
        )
        for weights in self.network[-1].parameters():
            nn.init.zeros_(weights)

    def forward(self, vector: Tensor, labels: Tensor) -> Tensor:
        """The changed vector."""
        kept, other = vector[:, : self.kept], vector[:, self.kept :]
        log_scale, shift = self._change(kept, labels)
        return torch.cat([kept, other * log_scale.exp() + shift], 1)

    def inverse(self, vector: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The vector that `forward` changes into this one, and ln |d inverse / d vector|, (n,)."""
        kept, other = vector[:, : self.kept], vector[:, self.kept :]
        log_scale, shift = self._change(kept, labels)
        return torch.cat([kept, (other - shift) * (-log_scale).exp()], 1), -log_scale.sum(1)

    def _change(self, kept: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(self.condition(kept, labels)).chunk(2, 1)
        return LARGEST_LOG_SCALE * (raw / LARGEST_LOG_SCALE).tanh(), shift


class CouplingFlow(nn.Module):
    """Couplings that change the two halves in turns: z (n, size) and labels (n,) int64 to w (n, size).

    Without layers w is z.
    """

    def __init__(self, size: int, layers: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(size, embedding, hidden) for _ in range(layers))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """W, for drawing."""
        w = z
        for coupling in self.couplings:
            w = coupling(w, labels).flip(1)
        return w

    def inverse(self, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The z of w, and ln |dz / dw|, (n,): ln p(w | y) is that and ln N(z; 0, 1)."""
        z, log_determinant = w, torch.zeros_like(w[:, 0])
        for coupling in reversed(self.couplings):
            z, change = cast("Coupling", coupling).inverse(z.flip(1), labels)
            log_determinant = log_determinant + change
        return z, log_determinant
