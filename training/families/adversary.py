"""The discriminator of an adversarial training: its network, its losses, its steps. Knows no generator."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from training.datasets.splits import CLASSES, SIDE
from training.runs.graphs import Metrics

Pairing = Literal["none", "relativistic"]
"""Whether each image is judged by itself, or a real and a generated one of a class against each other."""


class Discriminator(nn.Module):
    """From images (n, 1, 28, 28) in -1..1 and labels (n,) int64 to logits (n,): positive means real.

    channels: of the 14x14 map; the 7x7 map has twice as many. channels_28: of a first map, of 28x28 pixels;
    then there is a second convolution at 14x14 too. With 0 there is neither. features: the size of the vector
    on which the label is projected. with_classes: whether there is an output for the classes.

    The label enters by projection (Miyato and Koyama 2018): its embedding's product with the
    features is added. There is no batch normalisation, because R1 needs the gradient of each image by itself.
    """

    def __init__(self, channels: int, channels_28: int, features: int, with_classes: bool) -> None:
        super().__init__()
        before = _convolution(1, channels_28, 3) if channels_28 else []
        between = _convolution(channels, channels, 3) if channels_28 else []
        self.body = nn.Sequential(
            *before,
            *_convolution(channels_28 or 1, channels, 4, stride=2),
            *between,
            *_convolution(channels, 2 * channels, 4, stride=2),
            nn.Flatten(),
            nn.Linear(2 * channels * (SIDE // 4) ** 2, features),
            nn.LeakyReLU(0.2),
        )
        self.head = nn.Linear(features, 1)
        self.embedding = nn.Embedding(CLASSES, features)
        self.classes = nn.Linear(features, CLASSES) if with_classes else None
        self.apply(initialise)

    def forward(self, images: Tensor, labels: Tensor, with_classes: bool = False) -> Tensor:
        """Logits, (n,). with_classes: (n, 1 + CLASSES), with the logits of the classes after it."""
        features = self.body(images)
        logits: Tensor = self.head(features).squeeze(1) + (features * self.embedding(labels)).sum(1)
        if not with_classes or self.classes is None:
            return logits
        return torch.cat([logits.unsqueeze(1), self.classes(features)], 1)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride=stride, padding=1), nn.LeakyReLU(0.2)]


def initialise(module: nn.Module) -> None:
    """Convolutions from N(0, 0.02), as in DCGAN (Radford et al. 2016)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


@dataclass(frozen=True)
class Rules:
    """What a discriminator learns by.

    class_weight: the weight of the classes' cross-entropy (Odena et al. 2017, AC-GAN). The discriminator
        learns the classes from real images only, so it cannot agree with a generator on wrong ones.
    r1_gamma: the weight of R1, as gamma / 2 * penalty. r2_gamma: of the same penalty at generated images.
    r1_interval: the number of steps between two with R1 and R2, and the factor by which they are multiplied
        then.
    """

    pairing: Pairing
    class_weight: float
    r1_gamma: float
    r2_gamma: float
    r1_interval: int


class Adversary:
    """A discriminator with its optimiser, on the run's devices.

    optimizer: of the network's weights.
    """

    def __init__(
        self, network: Discriminator, optimizer: torch.optim.Optimizer, rules: Rules, fabric: Fabric
    ) -> None:
        self._network, self._rules, self._fabric = network, rules, fabric
        self._wrapped, self.optimizer = fabric.setup(network, optimizer)
        self.state = {"discriminator": self._wrapped, "discriminator_optimizer": self.optimizer}

    def train(self, real: Tensor, fake: Tensor, labels: Tensor, with_r1: bool) -> Metrics:
        """A step on real and generated images (n, 1, 28, 28) of the same labels (n,).

        Both go through the network together, in one forward pass of 2n: DDP requires it, and it is faster.
        """
        images, both = torch.cat([real, fake.detach()]), torch.cat([labels, labels])
        logits, classes = self._split(self._wrapped(images, both, self._classifies))
        on_real, on_fake = logits.chunk(2)
        relativistic = self._rules.pairing == "relativistic"
        loss = total = (relativistic_loss if relativistic else discriminator_loss)(on_real, on_fake)
        metrics = {
            "discriminator_loss": loss,
            "real_probability": on_real.sigmoid().mean(),
            "fake_probability": on_fake.sigmoid().mean(),
        }
        if classes is not None:
            metrics["class_loss"] = functional.cross_entropy(classes[: len(real)], labels)
            total = loss + self._rules.class_weight * metrics["class_loss"]
        if with_r1:
            # In full precision, and past Fabric's wrapper, which forbids autograd.grad under autocast.
            metrics["r1"] = gradient_penalty(self._network, real, labels)
            penalty = self._rules.r1_gamma * metrics["r1"]
            if self._rules.r2_gamma:
                metrics["r2"] = gradient_penalty(self._network, fake, labels)
                penalty = penalty + self._rules.r2_gamma * metrics["r2"]
            total = total + self._rules.r1_interval / 2 * penalty
        self.optimizer.zero_grad()
        self._fabric.backward(total)
        self.optimizer.step()
        return {name: value.detach() for name, value in metrics.items()}

    def losses(self, real: Tensor, fake: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of the generator that drew fake: the adversarial one, and the classes' cross-entropy.

        The latter is 0 if the discriminator does not learn the classes. The gradients reach the generated
        images, but not the discriminator's weights.
        """
        with frozen(self._network), self._fabric.autocast():
            judged = self._network(fake, labels, self._classifies).float()
            on_fake, classes = self._split(judged)
            if self._rules.pairing == "relativistic":
                loss = relativistic_loss(on_fake, self._network(real, labels).float())
            else:
                loss = generator_loss(on_fake)
            if classes is None:
                return loss, torch.zeros_like(loss)
            return loss, functional.cross_entropy(classes, labels)

    @property
    def _classifies(self) -> bool:
        return self._network.classes is not None

    def _split(self, judged: Tensor) -> tuple[Tensor, Tensor | None]:
        """The discriminator's logits (n,), and those of the classes (n, CLASSES) if it has them."""
        return (judged[:, 0], judged[:, 1:]) if self._classifies else (judged, None)


def veiled(images: Tensor, noise: Tensor) -> Tensor:
    """Images (n, 1, 28, 28) as a discriminator sees them: clipped to the range of pixels, with noise added.

    Training images hold whole grey levels, and most of their pixels are exactly black. Without noise the
    discriminator could tell them by that (Sonderby et al. 2017, instance noise).
    """
    return images.clamp(-1, 1) + noise


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let no gradient of what is computed meanwhile reach the network's weights."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), from logits (Goodfellow et al. 2014)."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(better - worse), from logits in pairs (Jolicoeur-Martineau 2019, eq. 5).

    The discriminator's loss with (real, fake), the generator's with (fake, real).
    """
    return functional.softplus(worse - better).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(G(z)), from logits: the non-saturating loss (Goodfellow et al. 2014, section 3)."""
    return functional.softplus(-fake).mean()


def gradient_penalty(discriminator: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The mean squared norm of the logit's gradient at images (Mescheder et al. 2018, eq. 9).

    R1 at real images, R2 at generated ones. Each logit must depend on its own image only. Differentiable
    with respect to the weights.
    """
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
