"""A classifier's graph as the graph of its gradient: of one label's probability by the image's pixels.

Reverse-mode differentiation, node by node, of what our classifiers are made of (`RULES`). The weights stay
the same tensors. The published graph is what is served, so its gradient is made from it and from no
checkpoint; besides, torch.export of torch 2.13 refuses `torch.func.grad` (a view of a functorch tensor).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.errors import GradientError
from training.onnx_files import nodes_for

IMAGES, LABEL, GRADIENT = "images", "label", "gradient"
"""The inputs and the output of the graph of a gradient."""


def gradient_graph(classifier: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph of the gradient: images FP32 in 0..255 and label INT64 in, gradient FP32 out.

    The gradient has the images' shape; its unit is probability per grey level. Raises GradientError for a
    graph that has other inputs than images, or an operator without a rule.
    """
    graph = classifier.graph
    if [value.name for value in graph.input] != [IMAGES]:
        raise GradientError(
            f"the graph's inputs are {[value.name for value in graph.input]}, expected {IMAGES}"
        )
    back = _Backward(classifier)
    back.run(graph.output[0].name)
    shape = [size.dim_param or size.dim_value for size in graph.input[0].type.tensor_type.shape.dim]
    made = helper.make_graph(
        [*back.forward, *back.nodes],
        GRADIENT,
        [
            helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, shape),
            helper.make_tensor_value_info(LABEL, TensorProto.INT64, shape[:1]),
        ],
        [helper.make_tensor_value_info(GRADIENT, TensorProto.FLOAT, shape)],
        [*back.weights(), *back.constants],
    )
    model = helper.make_model(made, opset_imports=classifier.opset_import, ir_version=classifier.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Backward:
    """The backward pass in the making. forward: the nodes that it needs; nodes: its own, in their order."""

    def __init__(self, classifier: onnx.ModelProto) -> None:
        self.forward: list[onnx.NodeProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._graph = classifier.graph
        self._initializers = {each.name: each for each in self._graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(classifier, data_prop=True).graph
        self._shapes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self._gradients: dict[str, list[str]] = {}

    def run(self, output: str) -> None:
        """Differentiate the graph from an output of probabilities back to the images."""
        self.forward = nodes_for(self._graph, [output])
        classes = self._shapes[output][1]
        depth = self.constant("classes", np.array([classes], np.int64))
        ends = self.constant("ends", np.array([0, 1], np.float32))
        self._gradients[output] = [self.add("OneHot", LABEL, depth, ends, axis=-1)]
        for node in reversed(self.forward):
            if node.op_type not in RULES:
                raise GradientError(
                    f"node {node.name} is {node.op_type}, expected one of {', '.join(sorted(RULES))}"
                )
            if node.output[0] in self._gradients:
                RULES[node.op_type](self, node, self._whole(node.output[0]))
        last = self._whole(IMAGES)
        self.nodes.append(helper.make_node("Identity", [last], [GRADIENT], name="node_gradient"))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"back_{len(self.nodes)}_{operator.lower()}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant; returns its name."""
        name = f"back_{name}"
        if name not in [each.name for each in self.constants]:
            self.constants.append(numpy_helper.from_array(value, name))
        return name

    def give(self, tensor: str, gradient: str) -> None:
        """Add to what a tensor's gradient is the sum of."""
        self._gradients.setdefault(tensor, []).append(gradient)

    def shape(self, tensor: str) -> Sequence[int]:
        """Return a tensor's shape; the batch axis is 0. Raises GradientError if it is unknown."""
        if tensor in self._initializers:
            return [*self._initializers[tensor].dims]
        if 0 in self._shapes.get(tensor, [])[1:] or tensor not in self._shapes:
            raise GradientError(f"the shape of {tensor} cannot be inferred")
        return self._shapes[tensor]

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is one of the graph's weights or constants."""
        return tensor in self._initializers

    def weights(self) -> list[onnx.TensorProto]:
        """Return the classifier's tensors that the nodes read."""
        read = {name for node in (*self.forward, *self.nodes) for name in node.input}
        return [each for each in self._graph.initializer if each.name in read]

    def _whole(self, tensor: str) -> str:
        """Return the sum of what a tensor's uses give to its gradient."""
        first, *others = self._gradients[tensor]
        for other in others:
            first = self.add("Add", first, other)
        return first


Rule = Callable[[_Backward, onnx.NodeProto, str], None]
"""Gives a node's inputs their gradients, from that of its output."""


def _attribute(node: onnx.NodeProto, name: str, fallback: object) -> object:
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return found.get(name, fallback)


def _softmax(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """P * (g - sum(g * P)), along the axis of the classes."""
    axis = back.constant("class_axis", np.array([1], np.int64))
    weighted = back.add("ReduceSum", back.add("Mul", gradient, node.output[0]), axis, keepdims=1)
    back.give(node.input[0], back.add("Mul", node.output[0], back.add("Sub", gradient, weighted)))


def _gemm(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """Of x W' + b: g W."""
    for name, usual in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        if _attribute(node, name, usual) != usual:
            raise GradientError(
                f"node {node.name} has {name} {_attribute(node, name, usual)}, expected {usual}"
            )
    rows, weights = node.input[:2]
    if not back.is_constant(weights):
        raise GradientError(f"node {node.name} multiplies by {weights}, expected constant weights")
    transposed = 1 - int(str(_attribute(node, "transB", 0)))
    back.give(rows, back.add("Gemm", gradient, weights, transB=transposed))


def _relu(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """Through where the output is above 0."""
    zero = back.constant("zero", np.array(0, np.float32))
    back.give(node.input[0], back.add("Where", back.add("Greater", node.output[0], zero), gradient, zero))


def _conv(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """The transposed convolution with the same weights.

    The output padding restores the rows that a stride left out.
    """
    images, weights = node.input[:2]
    if not back.is_constant(weights):
        raise GradientError(f"node {node.name} convolves with {weights}, expected constant weights")
    kernel = back.shape(weights)[2:]
    sides = len(kernel)
    usual: dict[str, object] = {"strides": [1] * sides, "dilations": [1] * sides, "pads": [0] * 2 * sides}
    given = {name: [int(each) for each in _sizes(node, name, fallback)] for name, fallback in usual.items()}
    missing = []
    for axis, size in enumerate(back.shape(images)[2:]):
        reach = given["dilations"][axis] * (kernel[axis] - 1) + 1
        padding = given["pads"][axis] + given["pads"][axis + sides]
        missing.append((size + padding - reach) % given["strides"][axis])
    group = _attribute(node, "group", 1)
    made = back.add("ConvTranspose", gradient, weights, output_padding=missing, group=group, **given)
    back.give(images, made)


def _sizes(node: onnx.NodeProto, name: str, fallback: object) -> Sequence[int]:
    value = _attribute(node, name, fallback)
    assert isinstance(value, Sequence)
    return value


def _reshape(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """The input's shape again."""
    back.give(node.input[0], back.add("Reshape", gradient, back.add("Shape", node.input[0])))


def _cast(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """From pixels to floats, which they are here already."""
    back.give(node.input[0], gradient)


def _divide(back: _Backward, node: onnx.NodeProto, gradient: str) -> None:
    """By a constant."""
    if not back.is_constant(node.input[1]):
        raise GradientError(f"node {node.name} divides by {node.input[1]}, expected a constant")
    back.give(node.input[0], back.add("Div", gradient, node.input[1]))


RULES: Mapping[str, Rule] = {
    "Cast": _cast,
    "Conv": _conv,
    "Div": _divide,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "Relu": _relu,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Unsqueeze": _reshape,
}
