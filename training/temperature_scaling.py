"""Temperature scaling (Guo et al. 2017) as one node of a classifier's graph: softmax(logits / temperature).

Runs nothing. The node stays apart from the last layer's weights, so that it can be seen, and taken out.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from training.errors import ConfidenceError

PROBABILITIES = "probabilities"
TEMPERATURE = "temperature"
"""The name of the node, of the number that it divides by, and of the metric."""

TEMPERED = "tempered_logits"


def softmax_of(graph: onnx.ModelProto) -> onnx.NodeProto:
    """Return the node that makes `probabilities`. Raises ConfidenceError unless it is a softmax."""
    made_by = {name: node for node in graph.graph.node for name in node.output}
    node: onnx.NodeProto | None = made_by.get(PROBABILITIES)
    if node is None or node.op_type != "Softmax":
        seen = "nothing" if node is None else node.op_type
        raise ConfidenceError(f"{PROBABILITIES} is made by {seen}, expected Softmax after a linear layer")
    return node


def temperature_of(graph: onnx.ModelProto) -> float | None:
    """Return the temperature that a graph divides its logits by, or None."""
    found = next((each for each in graph.graph.initializer if each.name == TEMPERATURE), None)
    return None if found is None else float(numpy_helper.to_array(found))


def without_temperature(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without a temperature."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    node = next((each for each in copy.graph.node if each.name == TEMPERATURE), None)
    if node is not None:
        softmax_of(copy).input[0] = node.input[0]
        copy.graph.node.remove(node)
    kept = [each for each in copy.graph.initializer if each.name != TEMPERATURE]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def with_temperature(graph: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """Return the graph with this temperature in the place of any other.

    The outputs but `probabilities` stay as they are. Raises ConfidenceError if no softmax makes these.
    """
    made = without_temperature(graph)
    softmax = softmax_of(made)
    logits = softmax.input[0]
    node = helper.make_node("Div", [logits, TEMPERATURE], [TEMPERED], TEMPERATURE)
    made.graph.node.insert(list(made.graph.node).index(softmax), node)
    softmax.input[0] = TEMPERED
    divisor = numpy_helper.from_array(np.array(temperature, np.float32), TEMPERATURE)
    made.graph.initializer.append(divisor)
    onnx.checker.check_model(made, full_check=True)
    return made
