"""Parity: compares an ONNX graph, run by onnxruntime, with the torch network that it was exported from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.models.manifest import TensorSpec
from training.errors import ExportError
from training.onnx_files import PART_ROWS, Arrays, open_session, run_in_parts

# Batch sizes at which torch and onnxruntime are compared, in addition to all inputs in parts.
PARITY_BATCHES = (1, 2, 7, 256)


def check_parity(
    network: nn.Module,
    path: Path,
    outputs: Sequence[TensorSpec],
    inputs: Arrays,
    tolerance: float,
    ranked: Sequence[str] = (),
) -> float:
    """Compare torch with onnxruntime; returns the largest difference of any element of any output.

    Compares all rows, in parts of PART_ROWS, and the first rows at PARITY_BATCHES. The arg-max of a row
    of probabilities must be the same. ranked: outputs that are not compared. Raises ExportError.
    """
    session = open_session(path)
    names = [spec.name for spec in outputs]
    count = len(next(iter(inputs.values())))
    largest = 0.0
    for size in (*PARITY_BATCHES, count):
        some = {name: array[:size] for name, array in inputs.items()}
        seen, expected = run_in_parts(session, names, some), _run_torch(network, some)
        for spec, left, right in zip(outputs, seen, expected, strict=False):
            if spec.name not in ranked:
                largest = max(largest, _difference(spec, left, right, tolerance))
    return largest


def _difference(spec: TensorSpec, seen: NDArray[Any], expected: NDArray[Any], tolerance: float) -> float:
    if seen.shape != expected.shape or seen.dtype != expected.dtype:
        raise ExportError(
            f"{spec.name} is {seen.dtype} {seen.shape} from onnxruntime, "
            f"{expected.dtype} {expected.shape} from torch"
        )
    difference = float(np.abs(seen.astype(np.float64) - expected.astype(np.float64)).max())
    if not difference <= tolerance:
        raise ExportError(
            f"{spec.name} differs by {difference:.3g} between torch and onnxruntime, "
            f"expected at most {tolerance:.3g}"
        )
    if spec.name == "probabilities" and (flips := int((seen.argmax(1) != expected.argmax(1)).sum())):
        raise ExportError(f"the most probable class differs in {flips} of {len(seen)} rows, expected none")
    return difference


@torch.no_grad()
def _run_torch(network: nn.Module, inputs: Arrays) -> list[NDArray[Any]]:
    tensors = [torch.from_numpy(array.copy()) for array in inputs.values()]
    split = zip(*(torch.split(tensor, PART_ROWS) for tensor in tensors), strict=True)
    results = [network(*part) for part in split]
    parts = [(result,) if isinstance(result, torch.Tensor) else result for result in results]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
