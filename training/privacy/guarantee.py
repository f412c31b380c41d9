"""What a run of private training guarantees, as its folder records it. Knows neither torch nor Opacus."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from training.errors import PrivacyError
from training.files import write_atomically

GUARANTEE_FILE = "guarantee.json"


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-differential privacy, and everything that it follows from.

    Neighbouring data sets differ in one image, which only one of them has (add or remove).
    accountant: the one whose epsilon this is. epsilon_rdp: by the looser one. noise: as in the configuration.
    images: in the training set. sampling_rate: the probability with which each of them is in a step's sample,
    independently of the others. noise_multiplier: the standard deviation of the noise in multiples of
    `clip_norm`, which bounds the norm of each image's gradient.
    """

    epsilon: float
    delta: float
    accountant: str
    epsilon_rdp: float
    steps: int
    images: int
    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    noise: str

    def __str__(self) -> str:
        """The guarantee in one line, as the manifest holds it."""
        facts = {name: getattr(self, name) for name in ("epsilon", "delta", "accountant", "steps", "images")}
        facts |= {
            name: getattr(self, name) for name in ("sampling_rate", "noise_multiplier", "clip_norm", "noise")
        }
        texts = {
            name: f"{fact:.5g}" if isinstance(fact, float) else str(fact) for name, fact in facts.items()
        }
        return " ".join(["DP-SGD", *(f"{name}={text}" for name, text in texts.items())])


def write_guarantee(folder: Path, guarantee: Guarantee) -> None:
    """Write a guarantee into a run's folder."""
    text = json.dumps(dataclasses.asdict(guarantee), indent=2)
    write_atomically(folder / GUARANTEE_FILE, f"{text}\n".encode())


def read_guarantee(folder: Path) -> Guarantee:
    """The guarantee of the run in a folder. Raises PrivacyError if there is none."""
    path = folder / GUARANTEE_FILE
    try:
        return Guarantee(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise PrivacyError(f"{path} cannot be read ({error}), expected the guarantee of a run") from None


def check_delta(delta: float, images: int) -> None:
    """Raise PrivacyError unless delta < 1 / images: a larger one would allow to publish an image."""
    if not delta < 1 / images:
        raise PrivacyError(f"delta is {delta:g}, expected less than 1 / {images}, the number of images")


def bound_on_attacks(epsilon: float, delta: float, false_positives: float) -> float:
    """The highest rate of true positives that an attack on membership can have at a rate of false positives.

    Kairouz, Oh and Viswanath 2015, theorem 2.1.
    """
    if epsilon > 700:  # exp overflows
        return 1.0
    first = math.exp(epsilon) * false_positives + delta
    return min(1.0, first, 1 - math.exp(-epsilon) * (1 - delta - false_positives))
