"""The output of a network that tells the classes, and what its numbers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from training.errors import NetworkError
from training.onnx_files import makers

Holds = Literal["logits", "probabilities"]

RESHAPING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")

TOLERANCE = 0.01
"""Probabilities may lie this far out of 0..1, and their sum from 1, as the service checks it."""


@dataclass(frozen=True)
class Output:
    """The output of a network that tells the classes. A single one is the second of two.

    logits: whether its numbers need a softmax, or, with a single one, a sigmoid, to be probabilities.
    """

    name: str
    classes: int
    logits: bool

    def probabilities(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probabilities of two classes or more, (rows, classes). values: the output's."""
        wide = values.reshape(len(values), self.classes).astype(np.float64)
        if self.classes == 1:
            second = 1 / (1 + np.exp(-wide)) if self.logits else wide
            return np.concatenate([1 - second, second], axis=1)
        if not self.logits:
            return wide
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares


def find_output(
    model: ModelProto,
    names: Sequence[str],
    answers: Sequence[NDArray[Any]],
    wanted: str | None = None,
    holds: Holds | None = None,
) -> Output:
    """Return the first output that tells classes, or the wanted one. Raises NetworkError.

    names, answers: the outputs and what they are for some rows. holds: what the numbers are; None to see it.
    """
    for name, values in zip(names, answers, strict=True):
        if wanted in (None, name) and _tells_classes(values):
            numbers = values.reshape(len(values), -1).astype(np.float64)
            holds = holds or _seen(name, numbers, _maker(model, name))
            return Output(name, numbers.shape[1], logits=holds == "logits")
    seen = ", ".join(
        f"{name} {each.dtype} {list(each.shape)}" for name, each in zip(names, answers, strict=True)
    )
    expected = "floats (rows, classes)" + (f" in {wanted}" if wanted else "")
    raise NetworkError(f"for {len(answers[0])} rows the outputs are {seen}, expected {expected}")


def _tells_classes(values: NDArray[Any]) -> bool:
    """Whether values are floats (rows, classes) or, as of a last convolution, (rows, classes, 1, 1)."""
    shape = values.shape
    return values.dtype in (np.float16, np.float32) and len(shape) in (2, 4) and set(shape[2:]) <= {1}


def _maker(model: ModelProto, name: str) -> str:
    """Return the operator that computes an output, before any that only changes its shape or datatype."""
    nodes = makers(model.graph)
    while name in nodes and nodes[name].op_type in RESHAPING:
        name = nodes[name].input[0]
    return nodes[name].op_type if name in nodes else ""


def _seen(name: str, values: NDArray[np.float64], maker: str) -> Holds:
    """Return what the numbers of an output are, (rows, classes). Raises NetworkError if both are possible."""
    if values.min() < -TOLERANCE or values.max() > 1 + TOLERANCE:
        return "logits"
    sums = values.sum(axis=1)
    if maker == "Sigmoid" if values.shape[1] == 1 else np.abs(sums - 1).max() <= TOLERANCE:
        return "probabilities"
    raise NetworkError(
        f"output {name} has numbers in 0..1 that add up to {sums[0]:.3g} in a row, expected those of a "
        "softmax, or a single one of a sigmoid; --holds says what they are"
    )
