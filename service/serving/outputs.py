"""Checks the values that a warm engine computes before any client sees one.

A graph may be opened and run, and still return NaN, or logits where the manifest promises probabilities.
"""

from collections.abc import Iterator

import numpy as np

from service.errors import RepositoryError
from service.models.manifest import Manifest, TensorSpec
from service.models.samples import highest_number, random_rows
from service.models.tensors import Array, dtype_of
from service.onnx.engine import Engine

SUM_TOLERANCE = 0.01
"""By how much a row of probabilities may miss 1: half-precision and 8-bit graphs round each class, by up to
0.001 for ten classes. Logits and independent sigmoids miss it by far more."""

PROBED_ROWS = 16

LARGEST_FLOAT = 4.0
"""Floats are latents or normalised pixels; a normal variable exceeds four once in 16,000."""


def check_outputs(engine: Engine, manifest: Manifest) -> None:
    """Run zeros, extremes and random rows. Raises RepositoryError if an output must not be served.

    Blocks; called by the thread that warmed the engine up.
    """
    rows = engine.bucket_for(min(PROBED_ROWS, engine.buckets[-1]))
    for name, inputs in _probes(manifest, rows):
        outputs = engine.run([inputs], rows)
        for spec, output in zip(manifest.outputs, outputs, strict=True):
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise RepositoryError(f"output {spec.name} is not finite for {name}, expected finite numbers")
        if manifest.task == "classification":
            _check_probabilities(manifest.outputs[0].name, outputs[0], name)


def _check_probabilities(output: str, rows: Array, inputs: str) -> None:
    lowest, highest = float(rows.min()), float(rows.max())
    sums = rows.sum(axis=1, dtype=np.float64)
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    if lowest < -SUM_TOLERANCE or highest > 1 + SUM_TOLERANCE or abs(worst - 1) > SUM_TOLERANCE:
        raise RepositoryError(
            f"output {output} holds {lowest:g} to {highest:g} and a row adds up to {worst:g} for {inputs}, "
            "expected probabilities: 0 to 1, adding up to 1; end the graph with Softmax if these are logits"
        )


def _probes(manifest: Manifest, rows: int) -> Iterator[tuple[str, tuple[Array, ...]]]:
    yield "zeros", tuple(_filled(spec, rows, 0.0) for spec in manifest.inputs)
    yield (
        "the largest inputs",
        tuple(_filled(spec, rows, _highest(manifest, spec)) for spec in manifest.inputs),
    )
    yield "the smallest inputs", tuple(_filled(spec, rows, _lowest(spec)) for spec in manifest.inputs)
    yield "random inputs", random_rows(manifest, rows, np.random.default_rng(0))


def _filled(spec: TensorSpec, rows: int, value: float) -> Array:
    return np.full((rows, *spec.shape[1:]), value, dtype_of(spec))


def _highest(manifest: Manifest, spec: TensorSpec) -> float:
    return LARGEST_FLOAT if dtype_of(spec).kind == "f" else highest_number(manifest, spec)


def _lowest(spec: TensorSpec) -> float:
    return -LARGEST_FLOAT if dtype_of(spec).kind == "f" else 0
