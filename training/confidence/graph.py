"""The score as nodes of a classifier's graph, and the features that it reads. Runs nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import OOD_SCORE
from training.confidence.score import EPSILON, Score
from training.errors import ConfidenceError
from training.onnx_files import check_names, makers, without_output
from training.temperature_scaling import logits_of

OPSET = 18
"""Since this version of the operators, reductions take their axes as an input."""


def features_of(graph: onnx.ModelProto) -> str:
    """Return the name of the penultimate features: the input of the last layer, before the softmax.

    Raises ConfidenceError if `probabilities` is not the softmax of one linear layer.
    """
    made_by = makers(graph.graph)
    name: str = _linear_layer(logits_of(graph), made_by).input[0]
    return name


def _linear_layer(name: str, made_by: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    """Return the layer that makes the logits: Gemm, MatMul, or MatMul and Add."""
    node = made_by.get(name)
    if node is not None and node.op_type == "Add":
        node = next((made_by[each] for each in node.input if each in made_by), None)
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        seen = "an input" if node is None else node.op_type
        raise ConfidenceError(f"the softmax reads {seen}, expected Gemm or MatMul, with or without Add")
    return node


def _levels(graph: onnx.ModelProto) -> str | None:
    """Return the 8-bit tensor that the features are a positive multiple of, or None.

    Their length cancels the multiple. More readers of a DequantizeLinear get a copy of it each, which costs
    the int8 MLP a tenth of its time.
    """
    made_by = makers(graph.graph)
    values = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    node = made_by.get(features_of(graph))
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, zero = (
        values.get(node.input[1]),
        values.get(node.input[2]) if len(node.input) > 2 else np.zeros(()),
    )
    if scale is None or zero is None or scale.size != 1 or zero.any():
        return None
    name: str = node.input[0]
    return name


def without_score(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without an earlier score."""
    return without_output(graph, OOD_SCORE)


def with_score(graph: onnx.ModelProto, score: Score) -> onnx.ModelProto:
    """Return the graph with the output `ood_score` (rows,) float32; the other nodes stay as they are.

    Raises ConfidenceError.
    """
    opset = next(each.version for each in graph.opset_import if each.domain in ("", "ai.onnx"))
    if opset < OPSET:
        raise ConfidenceError(f"the graph has operators of opset {opset}, expected {OPSET} or later")
    made = without_score(graph)
    weights: dict[str, NDArray[Any]] = {
        "ood_axis": np.array([1], np.int64),
        "ood_epsilon": np.array(EPSILON, np.float32),
        "ood_weights": np.concatenate([score.directions, score.linear], axis=1),
        "ood_sizes": np.array([score.directions.shape[1], score.linear.shape[1]], np.int64),
        "ood_offset": score.offset,
    }
    node, features, levels = helper.make_node, features_of(made), _levels(made)
    added = []
    if levels is not None:
        features = "ood_features"
        added.append(node("Cast", [levels], [features], features, to=TensorProto.FLOAT))
    added.extend(
        [
            node("ReduceL2", [features, "ood_axis"], ["ood_norm"], "ood_norm", keepdims=1),
            node("Add", ["ood_norm", "ood_epsilon"], ["ood_length"], "ood_length"),
            node("MatMul", [features, "ood_weights"], ["ood_products"], "ood_products"),
            node("Div", ["ood_products", "ood_length"], ["ood_unit"], "ood_unit"),
            node("Split", ["ood_unit", "ood_sizes"], ["ood_along", "ood_linear"], "ood_split", axis=1),
            node("Add", ["ood_linear", "ood_offset"], ["ood_classes"], "ood_classes"),
            node("ReduceSumSquare", ["ood_along", "ood_axis"], ["ood_square"], "ood_square", keepdims=0),
            node("ReduceMin", ["ood_classes", "ood_axis"], ["ood_nearest"], "ood_nearest", keepdims=0),
            node("Sub", ["ood_nearest", "ood_square"], [OOD_SCORE], OOD_SCORE),
        ]
    )
    check_names(made, {*weights, *(name for each in added for name in (each.name, *each.output))})
    made.graph.node.extend(added)
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    rows = made.graph.input[0].type.tensor_type.shape.dim[0]
    output = helper.make_tensor_value_info(OOD_SCORE, TensorProto.FLOAT, [rows.dim_param or "rows"])
    made.graph.output.append(output)
    onnx.checker.check_model(made, full_check=True)
    return made
