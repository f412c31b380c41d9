"""Random rows that a model accepts."""

import numpy as np

from service.models.manifest import Manifest, TensorSpec
from service.models.tensors import Array, dtype_of


def random_rows(manifest: Manifest, rows: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """Return an array per input, (rows, ...): normal variables, or whole numbers up to `highest_number`."""
    return tuple(_random(manifest, spec, rows, rng) for spec in manifest.inputs)


def highest_number(manifest: Manifest, spec: TensorSpec) -> int:
    """Return the largest number that a client may mean. Other integers may be indices: 1 is safe."""
    if spec is manifest.condition():
        return len(manifest.labels) - 1
    return 255 if spec.datatype == "UINT8" else 1


def _random(manifest: Manifest, spec: TensorSpec, rows: int, rng: np.random.Generator) -> Array:
    shape = (rows, *spec.shape[1:])
    if dtype_of(spec).kind == "f":
        return rng.standard_normal(shape).astype(dtype_of(spec))
    return rng.integers(0, highest_number(manifest, spec), shape, endpoint=True).astype(dtype_of(spec))
