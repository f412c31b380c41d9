"""The hyperparameters that `tune` searches, for each model, and the metric by which it ranks trials.

Knows nothing of Optuna. Every value here is within the limits of training/hyperparameters.py; the default
configuration is a point of its space.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from training.errors import TuningError

DIGITS = 4
"""Significant digits of a searched number, so that the command that repeats a trial stays short."""


@dataclass(frozen=True)
class Range:
    """Real numbers from `low` to `high`, both included; `log` draws them evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """A few values, without an order."""

    values: tuple[float | str, ...]

    def __str__(self) -> str:
        return " or ".join(str(value) for value in self.values)


@dataclass(frozen=True)
class Space:
    """What to search for one model.

    metric: the name of a validation metric in the run's metrics. maximize: whether more of it is better.
    fields: names of fields of the model's Config.
    """

    metric: str
    maximize: bool
    fields: Mapping[str, Range | Choice]

    def without(self, names: Collection[str]) -> "Space":
        """The space that remains if some fields have fixed values."""
        left = {name: field for name, field in self.fields.items() if name not in names}
        return Space(self.metric, self.maximize, left)


SPACES = {
    # The classifiers' loss, because one image in 5,000 of accuracy is mostly noise.
    "mlp": Space(
        "validation_loss",
        maximize=False,
        fields={
            "learning_rate": Range(5e-4, 2e-2, log=True),
            "weight_decay": Range(1e-3, 0.3, log=True),
            "batch_size": Choice((128, 256, 512)),
            "warm_up": Range(0.05, 0.5),
            "elastic_alpha": Range(0.0, 60.0),
        },
    ),
    "cnn": Space(
        "validation_loss",
        maximize=False,
        fields={
            "learning_rate": Range(5e-4, 2e-2, log=True),
            "weight_decay": Range(1e-3, 0.3, log=True),
            "batch_size": Choice((64, 128, 256)),
            "warm_up": Range(0.05, 0.5),
            "dropout": Range(0.0, 0.5),
            "elastic_alpha": Range(0.0, 40.0),
        },
    ),
    "vit": Space(
        "validation_loss",
        maximize=False,
        fields={
            "learning_rate": Range(5e-4, 1e-2, log=True),
            "weight_decay": Range(1e-3, 0.3, log=True),
            "batch_size": Choice((64, 128, 256)),
            "warm_up": Range(0.05, 0.5),
            "dropout": Range(0.0, 0.3),
            "elastic_alpha": Range(0.0, 40.0),
        },
    ),
    # The distance of the samples in the judge's features: a GAN's losses do not measure them.
    "gan": Space(
        "validation_distance",
        maximize=False,
        fields={
            "learning_rate": Range(5e-5, 1e-3, log=True),
            "beta1": Range(0.0, 0.7),
            "batch_size": Choice((32, 64, 128)),
            "r1_gamma": Range(0.1, 10.0, log=True),
            "latent": Choice((50, 100, 200)),
        },
    ),
    "vae": Space(
        "validation_elbo",
        maximize=True,
        fields={
            "learning_rate": Range(3e-4, 5e-3, log=True),
            "batch_size": Choice((64, 128, 256)),
            "latent": Choice((16, 32, 64)),
            "hidden": Choice((128, 256, 512)),
            "warm_up": Range(0.0, 0.5),
        },
    ),
    # As for the GAN: the loss is mostly the variance of paths that cross, which `coupling` changes.
    "flow": Space(
        "validation_distance",
        maximize=False,
        fields={
            "learning_rate": Range(5e-4, 5e-3, log=True),
            "weight_decay": Range(1e-3, 0.3, log=True),
            "batch_size": Choice((64, 128, 256)),
            "warm_up": Range(0.0, 0.5),
            "coupling": Choice((1, 128, 512)),
        },
    ),
}


def space_of(model: str) -> Space:
    """The space of a model. Raises TuningError for one without a space."""
    if model in SPACES:
        return SPACES[model]
    raise TuningError(
        f"{model!r} is no model with a search space, expected one of {', '.join(sorted(SPACES))}"
    )


def written(field: Range | Choice, value: float | str) -> str:
    """A value as the command line has it; the trial trains exactly this one."""
    return f"{value:.{DIGITS}g}" if isinstance(field, Range) else str(value)
