"""Temperature scaling (Guo et al. 2017) as one node of a classifier's graph: softmax(logits / temperature).

Runs nothing. The node is separate from the last layer's weights, so that it can be seen and removed.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from training.errors import ConfidenceError
from training.onnx_files import check_names, makers

PROBABILITIES = "probabilities"
TEMPERATURE = "temperature"
"""The name of the metric."""

CALIBRATED = "calibrated_logits"
DIVISOR = "calibrated_temperature"
"""The names of what is added: the node and what it makes, and what it divides by."""


def softmax_of(graph: onnx.ModelProto) -> onnx.NodeProto:
    """Return the node that makes `probabilities`. Raises ConfidenceError unless it is a softmax."""
    node = makers(graph.graph).get(PROBABILITIES)
    if node is None or node.op_type != "Softmax":
        seen = "nothing" if node is None else node.op_type
        raise ConfidenceError(f"{PROBABILITIES} is made by {seen}, expected Softmax after a linear layer")
    return node


def logits_of(graph: onnx.ModelProto) -> str:
    """Return the name of the softmax's input, before any temperature. Raises ConfidenceError."""
    name: str = (_division(graph) or softmax_of(graph)).input[0]
    return name


def temperature_of(graph: onnx.ModelProto) -> float | None:
    """Return the temperature that a graph divides its logits by, or None."""
    if _division(graph) is None:
        return None
    (divisor,) = (each for each in graph.graph.initializer if each.name == DIVISOR)
    return float(numpy_helper.to_array(divisor))


def without_temperature(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without a temperature. Raises ConfidenceError if no softmax makes `probabilities`."""
    plain = onnx.ModelProto()
    plain.CopyFrom(graph)
    softmax = softmax_of(plain)
    division = _division(plain)
    if division is not None:
        softmax.input[0] = division.input[0]
        plain.graph.node.remove(division)
        (divisor,) = (each for each in plain.graph.initializer if each.name == DIVISOR)
        plain.graph.initializer.remove(divisor)
    return plain


def _division(graph: onnx.ModelProto) -> onnx.NodeProto | None:
    """Return the node that divides what the softmax reads by the temperature, or None."""
    made_by = makers(graph.graph)
    last = made_by.get(PROBABILITIES)
    found = made_by.get(last.input[0]) if last is not None and last.input else None
    if found is None or found.op_type != "Div" or found.name != CALIBRATED or found.input[1] != DIVISOR:
        return None
    return found


def with_temperature(graph: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """Return the graph with this temperature; it replaces any earlier one.

    The outputs other than `probabilities` stay the same. Raises ConfidenceError if no softmax makes these, or
    if the graph has the names of what is added.
    """
    made = without_temperature(graph)
    check_names(made, {CALIBRATED, DIVISOR})
    softmax = softmax_of(made)
    node = helper.make_node("Div", [softmax.input[0], DIVISOR], [CALIBRATED], CALIBRATED)
    made.graph.node.insert(list(made.graph.node).index(softmax), node)
    softmax.input[0] = CALIBRATED
    made.graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), DIVISOR))
    onnx.checker.check_model(made, full_check=True)
    return made
