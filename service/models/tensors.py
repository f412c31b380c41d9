"""The one table of tensor datatypes: Open Inference Protocol names and numpy dtypes."""

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.models.manifest import Datatype, TensorSpec

Array = NDArray[Any]

_NUMPY_NAMES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}

DTYPES: dict[Datatype, np.dtype[Any]] = {
    datatype: np.dtype(_NUMPY_NAMES.get(datatype, datatype.lower())) for datatype in get_args(Datatype)
}
"""The numpy dtype of each datatype; little-endian on the wire, like the hosts we run on."""


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """Return the numpy dtype of a tensor."""
    return DTYPES[spec.datatype]


def check_tensor(spec: TensorSpec, array: NDArray[Any]) -> int:
    """Check that the tensor can hold an array, and return its number of rows.

    Raises InvalidInput if the dtype or the shape of a row differs, or if there are no rows.
    """
    if array.dtype != DTYPES[spec.datatype]:
        raise InvalidInput(f"{spec.name} has dtype {array.dtype}, expected {DTYPES[spec.datatype]}")
    if array.shape[1:] != spec.shape[1:] or not array.ndim:
        raise InvalidInput(f"{spec.name} has shape {list(array.shape)}, expected {list(spec.shape)}")
    if not len(array):
        raise InvalidInput(f"{spec.name} has no rows, expected at least 1")
    return len(array)
