"""Inference requests, as a route would make them."""

import math
from collections.abc import Mapping

from service.batching.request import InferenceRequest
from service.models.tensors import Array


def request_for(
    model: str, version: int | None, inputs: Mapping[str, Array], deadline: float = math.inf
) -> InferenceRequest:
    return InferenceRequest(model, version, inputs, max(map(len, inputs.values()), default=0), deadline)
