"""What a network expects of pixels. Knows nothing of ONNX."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import NetworkError


@dataclass(frozen=True)
class Normalization:
    """From pixels p in 0..255 to what a network expects: (p / scale - mean) / std, for each channel.

    mean, std: a number for each channel in the network's order, or one for all of them.
    bgr: whether that order is blue, green, red.
    """

    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def check(self, channels: int) -> None:
        """Raise NetworkError unless it suits images of so many channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                expected = " or ".join(str(number) for number in sorted({1, channels}))
                raise NetworkError(f"{name} has {len(values)} numbers, expected {expected}")
        if not (np.isfinite([self.scale, *self.mean, *self.std]).all() and min(self.scale, *self.std) > 0):
            raise NetworkError(
                f"scale is {self.scale:g}, mean {list(self.mean)} and std {list(self.std)}, expected finite "
                "numbers, of which scale and std are above 0"
            )

    def line(self, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a and b, (channels,), of the same function as a * p + b."""
        mean, std = (np.broadcast_to(np.array(each), (channels,)) for each in (self.mean, self.std))
        return (1 / (self.scale * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def __str__(self) -> str:
        order = " of the channels blue, green, red" if self.bgr else ""
        scaled = f"pixel / {self.scale:g}"
        if (self.mean, self.std) == ((0.0,), (1.0,)):
            return scaled + order
        mean, std = (" ".join(f"{number:g}" for number in each) for each in (self.mean, self.std))
        return f"({scaled} - ({mean})) / ({std}){order}"

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return normalised pixels. pixels: (..., channels), red, green, blue."""
        ordered = pixels[..., ::-1] if self.bgr else pixels
        normalized: NDArray[np.float64] = (ordered / self.scale - np.array(self.mean)) / np.array(self.std)
        return normalized
