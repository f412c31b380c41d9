"""The networks of the text model: two encoders that give unit vectors of one space.

A caption's vector lies near those of the images that show what it says (CLIP; Radford et al. 2021).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.captions.attributes import STYLES
from training.datasets.splits import CLASSES
from training.families.augment import Deformation
from training.families.layers import convolution
from training.runs.run import Precision

BYTES = 256
REACH = 2
"""How many bytes to each side a convolution looks; so many of the zeros behind a text are read as its end."""

LEVELS = 3


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from the seed.

    batch_size: of images. captions: texts of each step, drawn for as many of its images. foreign: prompts
    without a meaning that each step adds.
    embedding: the size of the common space. byte_channels, text_channels: of the text encoder's bytes and
        convolutions. channels_14, channels_7, hidden: of the image encoder.
    warm_up: the fraction of the steps in which the learning rate rises, before it falls along half a cosine
        to 0.
    meaning_weight: of the loss that reads digit and style off the text's features, and of the one that tells
        captions from prompts without a meaning.
    """

    epochs: int
    batch_size: int
    captions: int
    foreign: int
    embedding: int
    byte_channels: int
    text_channels: int
    channels_14: int
    channels_7: int
    hidden: int
    learning_rate: float
    weight_decay: float
    warm_up: float
    ema_decay: float
    meaning_weight: float
    rotation_degrees: float
    scale: float
    shear: float
    translation: float
    precision: Precision

    @property
    def deformation(self) -> Deformation:
        """How far the training images are deformed; their style is measured afterwards."""
        return Deformation(
            self.rotation_degrees, self.scale, self.shear, self.translation, elastic_alpha=0, elastic_sigma=1
        )


class TextEncoder(nn.Module):
    """Texts (n, MAX_BYTES) uint8, padded with zeros, to features (n, 2 * channels).

    Residual convolutions over bytes, each looking twice as far as the last; the mean and the maximum over
    the bytes that are there. ASCII capitals are read as small letters.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.text_channels
        self.bytes = nn.Embedding(BYTES, config.byte_channels)
        # As two-dimensional convolutions, which have a layout of channels last: measured with bfloat16 on one
        # AMX core, forward and backward of one layer on 640 texts take 41 ms, one-dimensional 112 ms.
        self.first = nn.Conv2d(config.byte_channels, width, (1, 2 * REACH + 1), padding=(0, REACH))
        self.others = nn.ModuleList(
            nn.Conv2d(width, width, (1, 2 * REACH + 1), padding=(0, REACH * step), dilation=(1, step))
            for step in (1, 2, 4)
        )

    def forward(self, text: Tensor) -> Tensor:
        """Features, (n, 2 * channels)."""
        codes = text.int()
        codes = codes + 32 * ((codes >= ord("A")) & (codes <= ord("Z"))).int()
        hidden = self.first(self.bytes(codes).unsqueeze(1).permute(0, 3, 1, 2))  # (n, channels, 1, MAX_BYTES)
        there = (codes > 0)[:, None, None].to(hidden.dtype)
        hidden = hidden * there
        for layer in self.others:
            hidden = hidden + functional.relu(layer(functional.relu(hidden))) * there
        hidden = functional.relu(hidden) * there
        mean = hidden.float().sum((2, 3)) / there.float().sum((2, 3)).clamp(min=1)
        return torch.cat([mean, hidden.amax((2, 3)).float()], 1)


class Pair(nn.Module):
    """Both encoders, and what is read off a text's features besides its vector."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.text = TextEncoder(config)
        features = 2 * config.text_channels
        self.text_head = nn.Sequential(
            nn.Linear(features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.embedding)
        )
        self.digit = nn.Linear(features, CLASSES + 1)  # the last: none
        self.styles = nn.Linear(features, len(STYLES) * LEVELS)
        self.understood = nn.Sequential(
            nn.Linear(features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1)
        )
        self.image = nn.Sequential(
            *convolution(1, config.channels_14, 5, stride=2, padding=2),
            *convolution(config.channels_14, config.channels_7, 3, stride=2, padding=1),
            *convolution(config.channels_7, config.channels_7, 3, padding=1),
            nn.Flatten(),
            nn.Linear(config.channels_7 * 7 * 7, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.embedding),
        )
        # As SigLIP, which starts with a low bias because few pairs fit: a cosine of 0.5 is the border.
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Vectors of images (n, 1, 28, 28) in 0..1 and of texts (m, MAX_BYTES); and each text's meaning.

        Returns unit vectors (n, embedding) and (m, embedding), and the logits of the digit (m, 11), of the
        styles (m, 3, 3) and of being understood (m,).
        """
        return unit(self.image(images)), *self.read(text)

    def read(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `forward` returns of texts."""
        features = self.text(text)
        styles = self.styles(features).unflatten(1, (len(STYLES), LEVELS))
        return (
            unit(self.text_head(features)),
            self.digit(features),
            styles,
            self.understood(features).squeeze(1),
        )

    def pair_logits(self, text: Tensor, images: Tensor) -> Tensor:
        """The logit of an image showing what a text says, (m, n), of their vectors."""
        return self.log_scale.exp() * text @ images.T + self.bias


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1, in float32."""
    return functional.normalize(vectors.float(), dim=1)
