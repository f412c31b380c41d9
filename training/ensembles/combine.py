"""Graphs that have the same input and output, as one graph that gives their mean output."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from training.errors import EnsembleError
from training.onnx_files import strip


def mean_of(graphs: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return one graph over the shared input, whose only output is the mean of the graphs' first outputs.

    The mean of probabilities, not of logits: it is the prediction of a mixture of the models
    (Lakshminarayanan, Pritzel and Blundell 2017). Names inside get a prefix. The mean is a Sum and a Mul,
    because onnxruntime's CUDA provider has no kernel for Mean and captures no graph that needs one.

    graphs: their first outputs are float32. Raises EnsembleError if the graphs do not fit.
    """
    first = graphs[0]
    source, target = first.graph.input[0], first.graph.output[0]
    for graph in graphs:
        _check_fits(graph, first)
    members = [compose.add_prefix(graph, f"member{number}/") for number, graph in enumerate(graphs)]
    nodes, weights, outputs = [], [], []
    for member in members:
        for node in member.graph.node:
            node.input[:] = [
                source.name if name == member.graph.input[0].name else name for name in node.input
            ]
        nodes += member.graph.node
        weights += member.graph.initializer
        outputs.append(member.graph.output[0].name)
    nodes += [
        helper.make_node("Sum", outputs, ["sum"], name="sum"),
        helper.make_node("Mul", ["sum", "share"], [target.name], name="mean"),
    ]
    weights.append(numpy_helper.from_array(np.array(1 / len(graphs), np.float32), "share"))
    combined = helper.make_model(
        helper.make_graph(nodes, "ensemble", [source], [target], weights),
        opset_imports=first.opset_import,
        functions=[function for member in members for function in member.functions],
        ir_version=max(graph.ir_version for graph in graphs),
    )
    strip(combined)
    onnx.checker.check_model(combined, full_check=True)
    return combined


def _check_fits(graph: onnx.ModelProto, first: onnx.ModelProto) -> None:
    opsets = [sorted((each.domain, each.version) for each in one.opset_import) for one in (graph, first)]
    if opsets[0] != opsets[1]:
        raise EnsembleError(f"a member uses the operator sets {opsets[0]}, expected {opsets[1]}")
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in graph.graph.initializer):
        raise EnsembleError("a member keeps weights in other files, expected all of them inside")
