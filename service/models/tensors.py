"""Tensor datatypes by their Open Inference Protocol names, as numpy knows them."""

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
"""The numpy dtype of each datatype; on the wire they are little-endian, as are the hosts we run on."""


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy dtype of a tensor."""
    return DTYPES[spec.datatype]


def check_tensor(spec: TensorSpec, array: NDArray[Any]) -> int:
    """The number of rows in an array that the tensor can hold.

    Raises InvalidInput if the dtype or the shape of a row is another, or if there are no rows.
    """
    if array.dtype != DTYPES[spec.datatype]:
        raise InvalidInput(f"{spec.name} has dtype {array.dtype}, expected {DTYPES[spec.datatype]}")
    if array.shape[1:] != spec.shape[1:] or not array.ndim:
        raise InvalidInput(f"{spec.name} has shape {list(array.shape)}, expected {list(spec.shape)}")
    if not len(array):
        raise InvalidInput(f"{spec.name} has no rows, expected at least 1")
    return len(array)
