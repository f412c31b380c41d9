"""Checks the values that a warm engine computes before any client sees one.

A graph may be opened and run, and still return NaN, or logits where the manifest promises probabilities.
"""

from collections.abc import Sequence

import numpy as np

from service.errors import RepositoryError
from service.models.manifest import Manifest, TensorSpec
from service.models.samples import highest_number, random_rows
from service.models.tensors import Array, dtype_of
from service.onnx.engine import Engine

SUM_TOLERANCE = 0.01
"""By how much a row of probabilities may miss 1: half-precision and 8-bit graphs round each class, by up to
0.001 for ten classes. Logits and independent sigmoids miss it by far more."""

RANDOM_ROWS = 5
"""With the rows of zeros, of the largest and of the smallest inputs they make eight. The start waits for
them: 64 rows of `flow` took 1 to 3 s."""

LARGEST_FLOAT = 4.0
"""Floats are latents or normalised pixels; a normal variable exceeds four once in 16,000."""


def check_outputs(engine: Engine, manifest: Manifest) -> None:
    """Run zeros, extremes and random rows. Raises RepositoryError if an output must not be served.

    A model for inference may give anything: its logarithm of 0, too, which is not finite.
    Blocks; called by the thread that warmed the engine up.
    """
    if manifest.task == "inference":
        return
    names, inputs = _probes(manifest)
    size = max([engine.buckets[0], *(size for size in engine.buckets if size <= len(names))])
    for begin in range(0, len(names), size):
        parts = tuple(array[begin : begin + size] for array in inputs)
        outputs = engine.run([parts], len(parts[0]))
        for row, name in enumerate(names[begin : begin + size]):
            _check_row(manifest, [output[row] for output in outputs], name)


def _check_row(manifest: Manifest, outputs: Sequence[Array], name: str) -> None:
    for spec, output in zip(manifest.outputs, outputs, strict=True):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise RepositoryError(f"output {spec.name} is not finite for {name}, expected finite numbers")
    if manifest.task == "classification":
        _check_probabilities(manifest.outputs[0].name, outputs[0], name)


def _check_probabilities(output: str, row: Array, inputs: str) -> None:
    lowest, highest, total = float(row.min()), float(row.max()), float(row.sum(dtype=np.float64))
    if lowest < -SUM_TOLERANCE or highest > 1 + SUM_TOLERANCE or abs(total - 1) > SUM_TOLERANCE:
        raise RepositoryError(
            f"output {output} holds {lowest:g} to {highest:g} and adds up to {total:g} for {inputs}, "
            "expected probabilities: 0 to 1, adding up to 1; if these are logits, "
            "python -m training import adds the softmax; with the task inference, any numbers are served"
        )


def _probes(manifest: Manifest) -> tuple[list[str], tuple[Array, ...]]:
    """Return what each row holds, and the rows: an array per input."""
    names = ["zeros", "the largest inputs", "the smallest inputs", *["random inputs"] * RANDOM_ROWS]
    chosen = random_rows(manifest, RANDOM_ROWS, np.random.default_rng(0))
    return names, tuple(
        np.concatenate(
            [*(_filled(spec, value) for value in (0, _highest(manifest, spec), _lowest(spec))), rows]
        )
        for spec, rows in zip(manifest.inputs, chosen, strict=True)
    )


def _filled(spec: TensorSpec, value: float) -> Array:
    return np.full((1, *spec.shape[1:]), value, dtype_of(spec))


def _highest(manifest: Manifest, spec: TensorSpec) -> float:
    return LARGEST_FLOAT if dtype_of(spec).kind == "f" else highest_number(manifest, spec)


def _lowest(spec: TensorSpec) -> float:
    return -LARGEST_FLOAT if dtype_of(spec).kind == "f" else 0
