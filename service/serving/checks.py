"""Validates a request's inputs against its model's manifest, and the settings against the models."""

from collections.abc import Mapping

import numpy as np

from service.errors import InvalidInput, PayloadTooLarge
from service.models.catalogue import Catalogue
from service.models.manifest import Manifest, Task
from service.models.tensors import Array, check_tensor
from service.settings import Settings


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


def unmet_default(settings: Settings, models: Catalogue) -> str | None:
    """Return what is wrong with the default models that the settings name, or None if they are served."""
    defaults: tuple[tuple[str, Task, str | None], ...] = (
        ("default_classifier", "classification", settings.default_classifier),
        ("default_generator", "generation", settings.default_generator),
        ("default_encoder", "encoding", settings.default_encoder),
    )
    for setting, task, name in defaults:
        served = sorted({info.manifest.name for info in models.latest() if info.manifest.task == task})
        if name is not None and name not in served:
            expected = ", ".join(served) or "none is"
            why = "; ".join(failure.reason for failure in models.failures if failure.name == name)
            reason = f" ({why})" if why else ""
            return f"{setting} is {name!r}{reason}, expected a {task} model that is served: {expected}"
    return None


def _check_labels(manifest: Manifest, labels: Array) -> None:
    """Check the labels before they are queued: an unknown one would fail its whole batch."""
    wrong = (labels < 0) | (labels >= len(manifest.labels))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidInput(f"label[{row}] is {labels[row]}, expected 0..{len(manifest.labels) - 1}")
