"""Validates a request's inputs against its model's manifest, and the settings against the models."""

from collections.abc import Mapping

import numpy as np

from service.errors import InvalidInput, PayloadTooLarge
from service.models.catalogue import Catalogue
from service.models.manifest import Manifest, Task
from service.models.tensors import Array, check_tensor, dtype_of
from service.settings import Settings


class InputCheck:
    """Checks the inputs of one model version, at the cost of a few comparisons if nothing is wrong.

    tensors: the name, dtype and row shape of each input, in the graph's order.
    plain: whether no input holds labels, whose values would have to be checked.
    """

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self._manifest = manifest
        self._max_rows = max_rows
        self.tensors = tuple((spec.name, dtype_of(spec), spec.shape[1:]) for spec in manifest.inputs)
        self.plain = manifest.condition() is None

    def arrays(self, inputs: Mapping[str, Array], rows: int) -> tuple[Array, ...]:
        """Return the inputs of a request that says how many rows it has, in the order of the graph.

        Raises what `checked` raises. `LocalPredictor.submit` has the same comparisons inline.
        """
        arrays = []
        for name, dtype, shape in self.tensors:
            array = inputs.get(name)
            if array is None or array.dtype != dtype or array.shape != (rows, *shape):
                break
            arrays.append(array)
        fits = len(arrays) == len(inputs) == len(self.tensors)
        if fits and self.plain and 0 < rows <= self._max_rows:
            return tuple(arrays)
        return self.checked(inputs, rows)

    def checked(self, inputs: Mapping[str, Array], rows: int) -> tuple[Array, ...]:
        """Do what `arrays` does, by `check_inputs`, which says what is wrong.

        Raises InvalidInput and PayloadTooLarge, and ValueError if the inputs have other rows.
        """
        counted = check_inputs(self._manifest, inputs, self._max_rows)
        if counted != rows:
            raise ValueError(f"request says {rows} rows, its inputs have {counted}")
        return tuple([inputs[name] for name, _, _ in self.tensors])


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
    if manifest.condition() is not None:
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
