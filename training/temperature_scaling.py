"""Temperature scaling (Guo et al. 2017) as one node of a classifier's graph: softmax(logits / temperature).

Runs nothing. The node is separate from the last layer's weights, so that it can be seen and removed.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from training.errors import ConfidenceError
from training.onnx_files import without

PROBABILITIES = "probabilities"
TEMPERATURE = "temperature"
"""The name of the metric."""

PREFIX = "calibrated_"
"""How the names of all that is added begin. A network may have a `temperature` of its own."""

CALIBRATED = PREFIX + "logits"
DIVISOR = PREFIX + "temperature"


def softmax_of(graph: onnx.ModelProto) -> onnx.NodeProto:
    """Return the node that makes `probabilities`. Raises ConfidenceError unless it is a softmax."""
    made_by = {name: node for node in graph.graph.node for name in node.output}
    node: onnx.NodeProto | None = made_by.get(PROBABILITIES)
    if node is None or node.op_type != "Softmax":
        seen = "nothing" if node is None else node.op_type
        raise ConfidenceError(f"{PROBABILITIES} is made by {seen}, expected Softmax after a linear layer")
    return node


def logits_of(graph: onnx.ModelProto) -> str:
    """Return the name of the softmax's input, before any temperature. Raises ConfidenceError."""
    divided = (each for each in graph.graph.node if each.name == CALIBRATED)
    name: str = next(divided, softmax_of(graph)).input[0]
    return name


def temperature_of(graph: onnx.ModelProto) -> float | None:
    """Return the temperature that a graph divides its logits by, or None."""
    found = next((each for each in graph.graph.initializer if each.name == DIVISOR), None)
    return None if found is None else float(numpy_helper.to_array(found))


def without_temperature(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without a temperature. Raises ConfidenceError if no softmax makes `probabilities`."""
    plain = without(graph, PREFIX)
    softmax_of(plain).input[0] = logits_of(graph)
    return plain


def with_temperature(graph: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """Return the graph with this temperature; it replaces any earlier one.

    The outputs other than `probabilities` stay the same. Raises ConfidenceError if no softmax makes these.
    """
    made = without_temperature(graph)
    softmax = softmax_of(made)
    node = helper.make_node("Div", [softmax.input[0], DIVISOR], [CALIBRATED], CALIBRATED)
    made.graph.node.insert(list(made.graph.node).index(softmax), node)
    softmax.input[0] = CALIBRATED
    made.graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), DIVISOR))
    onnx.checker.check_model(made, full_check=True)
    return made
