"""Checks the values that a warm engine computes before any client sees one.

A graph may be opened and run, and still return NaN, or logits where the manifest promises probabilities.
"""

from collections.abc import Iterator

import numpy as np

from service.errors import RepositoryError
from service.models.manifest import Manifest, TensorSpec
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
    rng = np.random.default_rng(0)
    yield "zeros", tuple(_filled(spec, rows, 0.0) for spec in manifest.inputs)
    yield (
        "the largest inputs",
        tuple(_filled(spec, rows, _highest(manifest, spec)) for spec in manifest.inputs),
    )
    yield "the smallest inputs", tuple(_filled(spec, rows, _lowest(spec)) for spec in manifest.inputs)
    yield "random inputs", tuple(_random(manifest, spec, rows, rng) for spec in manifest.inputs)


def _filled(spec: TensorSpec, rows: int, value: float) -> Array:
    return np.full((rows, *spec.shape[1:]), value, dtype_of(spec))


def _highest(manifest: Manifest, spec: TensorSpec) -> float:
    """Return the largest value that a client may mean. Other integers may be indices: 1 is safe."""
    kind = dtype_of(spec).kind
    if spec.name == "label":
        return len(manifest.labels) - 1
    if kind == "f":
        return LARGEST_FLOAT
    return 255 if spec.datatype == "UINT8" else 1


def _lowest(spec: TensorSpec) -> float:
    return -LARGEST_FLOAT if dtype_of(spec).kind == "f" else 0


def _random(manifest: Manifest, spec: TensorSpec, rows: int, rng: np.random.Generator) -> Array:
    shape = (rows, *spec.shape[1:])
    if dtype_of(spec).kind == "f":
        return rng.standard_normal(shape).astype(dtype_of(spec))
    return rng.integers(0, int(_highest(manifest, spec)), shape, endpoint=True).astype(dtype_of(spec))
