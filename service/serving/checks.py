"""Validates a request's inputs against its model's manifest, before anything is queued."""

from collections.abc import Mapping

import numpy as np

from service.errors import InvalidInput, PayloadTooLarge
from service.models.manifest import Manifest
from service.models.tensors import Array, check_tensor


def check_inputs(manifest: Manifest, inputs: Mapping[str, Array], max_rows: int) -> int:
    """Return the number of rows of a request that the model can run.

    Raises InvalidInput if a tensor is missing, unknown, has another dtype, shape or number of rows than
    expected, or holds labels that the model does not know; PayloadTooLarge above `max_rows`.
    """
    counts = {
        spec.name: check_tensor(spec, inputs[spec.name]) for spec in manifest.inputs if spec.name in inputs
    }
    if not len(counts) == len(inputs) == len(manifest.inputs):
        expected = [spec.name for spec in manifest.inputs]
        raise InvalidInput(f"inputs are {sorted(inputs)}, model {manifest.name} expects {expected}")
    rows = max(counts.values())
    if rows != min(counts.values()):
        raise InvalidInput(f"inputs have different numbers of rows: {counts}, expected the same")
    if rows > max_rows:
        raise PayloadTooLarge(f"request has {rows} rows, expected at most {max_rows}")
    if "label" in inputs:
        _check_labels(manifest, inputs["label"])
    return rows


def _check_labels(manifest: Manifest, labels: Array) -> None:
    """Check the labels before they are queued: an unknown one would fail its whole batch."""
    wrong = (labels < 0) | (labels >= len(manifest.labels))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidInput(f"label[{row}] is {labels[row]}, expected 0..{len(manifest.labels) - 1}")
