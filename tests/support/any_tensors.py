"""Models of any tensors, and arrays for them."""

from typing import get_args

import numpy as np
from hypothesis import strategies as st

from service.content.inference_requests import ModelTensors
from service.models.manifest import Datatype, TensorSpec
from service.models.tensors import Array, dtype_of

MAX_ROWS = 9


def array_of(spec: TensorSpec, rows: int, seed: int) -> Array:
    """Any elements that the tensor can hold."""
    dtype, shape = dtype_of(spec), (rows, *spec.shape[1:])
    random = np.random.default_rng(seed)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "f":
        return random.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@st.composite
def models(draw: st.DrawFn) -> ModelTensors:
    def specs(kind: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=f"{kind}{number}",
                datatype=draw(st.sampled_from(get_args(Datatype))),
                shape=(-1, *draw(st.lists(st.integers(1, 4), max_size=3))),
            )
            for number in range(draw(st.integers(1, 3)))
        )

    return ModelTensors("any", specs("in"), specs("out"))
