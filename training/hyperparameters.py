"""Changes hyperparameters from the command line, within the values that make sense. Knows no network."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from training.errors import ArgumentError

BELOW_ONE = frozenset(
    (
        *("beta1", "beta2", "dropout", "ema_decay", "label_smoothing", "momentum", "pruned"),
        *("scale", "shear", "warm_up"),
    )
)
"""Hyperparameters in 0..1 without 1: fractions, probabilities, weights of averages."""

TO_ONE = frozenset(("learning_rate_end", "teacher_weight"))

FROM_ZERO = frozenset(("blocks_14", "blocks_7", "discriminator_channels_28", "flow_layers", "noise_images"))
"""Counts that may be 0, of layers and of the noise images in a batch."""

ABOVE_ZERO = frozenset(
    (
        *("adversary_rate", "clip_norm", "contrast", "delta", "elastic_sigma", "epsilon"),
        *("learning_rate", "rate_ratio", "temperature"),
    )
)

FROM_MINUS_ONE = frozenset(("guidance",))


def _off(value: object) -> bool:
    return value in (0, "none")


def _on(value: object) -> bool:
    return not _off(value)


def _one(value: object) -> bool:
    return value == 1


IDLE = {
    "adversary_class_weight": {"adversary_weight": _off},
    "adversary_rate": {"adversary_weight": _off},
    "class_ratio": {"class_weight": _off},
    "clip_norm": {"reader": _off, "teacher": _off},
    "coupling": {"teacher": _on},
    "drawn": {"reader": _off},
    "elastic_sigma": {"elastic_alpha": _off},
    "flow_hidden": {"flow_layers": _off},
    "judge_interval": {"judge": _off},
    "kept": {"judge": _off},
    "label_smoothing": {"teacher": _on, "teacher_weight": _one},
    "reader_weight": {"reader": _off},
    "teacher_weight": {"teacher": _off},
    "temperature": {"teacher": _off},
}
"""Hyperparameters, and the others that leave one without an effect while all their values pass these tests.

A model that has none of the others gives the name another meaning.
"""


def configured(model: str, config: Any, changes: Sequence[str]) -> Any:
    """Return a configuration with changes. changes: NAME=VALUE each.

    Raises ArgumentError for an unknown name, a value that is not allowed, or a change without an effect.
    """
    for change in changes:
        config = _changed(model, config, change)
    reasons = idle(config)
    for change in changes:
        if (reason := reasons.get(change.partition("=")[0])) is not None:
            raise ArgumentError(f"--set {change} has no effect: {reason}")
    return config


def idle(config: Any) -> dict[str, str]:
    """The hyperparameters that have no effect in a configuration, each with the reason."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    reasons = {}
    for name in IDLE.keys() & values.keys():
        others = {other: holds for other, holds in IDLE[name].items() if other in values}
        if others and all(holds(values[other]) for other, holds in others.items()):
            reasons[name] = " and ".join(f"{other} is {values[other]}" for other in others)
    return reasons


def _changed(model: str, config: Any, change: str) -> Any:
    name, _, text = change.partition("=")
    kinds = get_type_hints(type(config))
    if name not in kinds:
        raise ArgumentError(
            f"--set {change}: {model} has no hyperparameter {name!r}, expected one of {', '.join(kinds)}"
        )
    return dataclasses.replace(config, **{name: _value(f"--set {change}", name, kinds[name], text)})


def _value(where: str, name: str, kind: Any, text: str) -> object:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ArgumentError(f"{where}: expected one of {', '.join(get_args(kind))}")
        return text
    if kind is str:
        return text
    try:
        value: float = kind(text)
    except ValueError:
        raise ArgumentError(f"{where}: {text!r} is not of type {kind.__name__}") from None
    expected, holds = _range(name, kind)
    if not (math.isfinite(value) and holds(value)):
        raise ArgumentError(f"{where}: expected {expected}")
    return value


def _range(name: str, kind: type) -> tuple[str, Callable[[float], bool]]:
    """Return what numbers a hyperparameter may be, in words and as a test."""
    if kind is int and name not in FROM_ZERO:
        return "1 or more", lambda value: value >= 1
    if name in BELOW_ONE:
        return "0 or more, and less than 1", lambda value: 0 <= value < 1
    if name in TO_ONE:
        return "0 to 1", lambda value: 0 <= value <= 1
    if name in ABOVE_ZERO:
        return "more than 0", lambda value: value > 0
    if name in FROM_MINUS_ONE:
        return "-1 or more", lambda value: value >= -1
    return "0 or more", lambda value: value >= 0
