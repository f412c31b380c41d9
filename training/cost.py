"""The work that an ONNX graph does for one row. Knows nothing of torch, and runs nothing."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import shape_inference

from training.errors import EvaluationError

MULTIPLY_ADDS = "multiply_adds"
"""The metric's name in manifests."""


def multiply_adds(path: Path) -> int:
    """Count the multiplications, each with its addition, in the convolutions and matrix products of a graph.

    They are those of one row; additions, activations and normalisations are left out, as usual. A quantised
    graph has as many as its source. Raises EvaluationError if a shape cannot be inferred.
    """
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise EvaluationError(f"the shapes cannot be inferred: {error}") from None
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
        if value.type.tensor_type.HasField("shape")
    }
    shapes |= {weights.name: [*weights.dims] for weights in graph.initializer}
    return sum(_products(node, shapes) for node in graph.node)


def _products(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int:
    """The multiply-adds of a node: of each element that it makes, or, if transposed, that it takes."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    missing = [name for name in (*node.input[:2], node.output[0]) if 0 in shapes.get(name, [0])]
    if missing:
        raise EvaluationError(f"the shape of {missing[0]} cannot be inferred, which {node.op_type} needs")
    rows, weights, result = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(rows) * math.prod(weights[1:])
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return math.prod(result) * rows[-2 if transposed else -1]
