"""The layers of an ONNX graph: operators, output shapes, parameters, multiply-adds, read from its file.

Knows the rules of the operators that image models are made of (`_RULES`); the shape of what another operator
makes, and of all that follows from it, stays unknown unless the graph tells it. Nothing runs.
"""

import contextlib
import math
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from service.errors import RepositoryError
from service.models.protobuf import fields, message_of, messages_of, number_of, numbers_of, text_of

Shape = tuple[int, ...]
"""Sizes of a tensor's axes; -1 is the batch axis, or one that the graph leaves free."""

_GRAPH, _NODES, _INITIALIZERS, _INPUTS, _OUTPUTS, _VALUES = 7, 1, 5, 11, 12, 13
"""The fields of ModelProto and GraphProto that are read here, by number."""

_INT64, _MOST_CONSTANTS = 7, 64
"""TensorProto's number for int64; longer tensors of it are no shapes or axes."""

_COSTLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Layer(NamedTuple):
    """A node of a graph. shape: of its first output, None if it is unknown.

    inputs: the names of the layers that it reads from; empty for the graph's own inputs.
    parameters: elements of its weights. multiply_adds: for one row, None if a shape that it takes is unknown.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    shape: Shape | None
    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]
    """Attributes that are whole numbers, or lists of them."""

    def one(self, name: str, fallback: int) -> int:
        """Return an attribute that is one number."""
        return self.numbers.get(name, (fallback,))[0]


class _Tensors:
    """What is known of tensors. shapes: by name. values: of constants that may be shapes or axes.

    weights: the elements of each constant that is no shape, by name.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, tuple[int, ...]] = {}
        self.weights: dict[str, int] = {}

    def of(self, node: _Node, place: int) -> Shape:
        """Return the shape of a node's input. Raises LookupError if it is unknown."""
        return self.shapes[node.inputs[place]]

    def constant(self, node: _Node, place: int, attribute: str) -> tuple[int, ...]:
        """Return whole numbers that a node has as an input, or as an attribute. Raises LookupError."""
        if attribute in node.numbers:
            return node.numbers[attribute]
        return self.values[node.inputs[place]]


def read_layers(path: Path) -> list[Layer]:
    """Return the nodes of a graph, in its order, without constants.

    Raises RepositoryError if the file is not an ONNX graph.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = message_of(data, range(len(data)), _GRAPH)
            nodes = [_node(data, each) for each in messages_of(data, graph, _NODES)]
            return _layers([each for each in nodes if each.operator != "Constant"], _read(data, graph))
    except (ValueError, OSError) as error:
        raise RepositoryError(f"{path} is not an ONNX graph: {error}") from None


def _read(data: mmap.mmap, graph: range) -> _Tensors:
    tensors = _Tensors()
    for number, value in fields(data, graph):
        if not isinstance(value, range):
            continue
        if number in (_INPUTS, _OUTPUTS, _VALUES):
            shape = message_of(data, message_of(data, message_of(data, value, 2), 1), 2)
            if shape.start:  # else it is left out
                sizes = [number_of(data, each, 1) for each in messages_of(data, shape, 1)]
                tensors.shapes[text_of(data, value, 1)] = tuple(size or -1 for size in sizes)
        elif number == _INITIALIZERS:
            _read_constant(data, value, text_of(data, value, 8), tensors)
        elif number == _NODES and text_of(data, value, 4) == "Constant":
            tensor = message_of(data, message_of(data, value, 5), 5)
            _read_constant(data, tensor, text_of(data, value, 2), tensors)
    return tensors


def _read_constant(data: mmap.mmap, tensor: range, name: str, tensors: _Tensors) -> None:
    sizes = tuple(numbers_of(data, tensor, 1))
    tensors.shapes[name] = sizes
    count = math.prod(sizes)
    if number_of(data, tensor, 2) != _INT64:
        tensors.weights[name] = count
    elif count <= _MOST_CONSTANTS:
        raw = message_of(data, tensor, 9)
        packed = struct.unpack(f"<{len(raw) // 8}q", data[raw.start : raw.stop]) if raw else ()
        tensors.values[name] = packed or tuple(numbers_of(data, tensor, 7))


def _node(data: mmap.mmap, node: range) -> _Node:
    numbers = {}
    for attribute in messages_of(data, node, 5):
        kind = number_of(data, attribute, 20)
        if kind in (2, 7):  # INT, INTS
            numbers[text_of(data, attribute, 1)] = tuple(
                numbers_of(data, attribute, 3 if kind == 2 else 8)
            ) or (0,)
    inputs, outputs = (
        tuple(data[each.start : each.stop].decode() for each in messages_of(data, node, field))
        for field in (1, 2)
    )
    return _Node(text_of(data, node, 3), text_of(data, node, 4), inputs, outputs, numbers)


def _layers(nodes: Sequence[_Node], tensors: _Tensors) -> list[Layer]:
    layers: list[Layer] = []
    makers: dict[str, str] = {}
    counted: set[str] = set()
    for place, node in enumerate(nodes):
        name = node.name or f"{node.operator}_{place}"
        rule = _RULES.get(node.operator)
        if rule is not None and node.outputs[0] not in tensors.shapes:
            # Otherwise it is unknown, as all that follows from it.
            with contextlib.suppress(LookupError, ValueError, ZeroDivisionError):
                tensors.shapes[node.outputs[0]] = rule(node, tensors)
        if node.operator == "Split":
            with contextlib.suppress(LookupError, ValueError):
                tensors.shapes |= _parts(node, tensors)
        weights = [each for each in node.inputs if tensors.weights.get(each, 0) > 1 and each not in counted]
        counted |= {*weights}
        layers.append(
            Layer(
                name,
                node.operator,
                tuple(dict.fromkeys(makers[each] for each in node.inputs if each in makers)),
                tensors.shapes.get(node.outputs[0]),
                sum(tensors.weights[each] for each in weights),
                _multiply_adds(node, tensors),
            )
        )
        makers |= dict.fromkeys(node.outputs, name)
    return layers


def _multiply_adds(node: _Node, tensors: _Tensors) -> int | None:
    """Return the multiplications of one row, each with its addition; 0 for operators other than products."""
    if node.operator not in _COSTLY:
        return 0
    try:
        rows, weights, made = (_one_row(tensors.shapes[name]) for name in (*node.inputs[:2], node.outputs[0]))
    except LookupError:
        return None
    if node.operator == "Conv":
        return math.prod(made) * math.prod(weights[1:])
    if node.operator == "ConvTranspose":
        return math.prod(rows) * math.prod(weights[1:])
    return math.prod(made) * rows[-2 if node.one("transA", 0) else -1]


def _one_row(shape: Shape) -> Shape:
    """Return a shape with one row in its batch axis. Raises LookupError if another axis is free."""
    if -1 in shape[1:]:
        raise LookupError
    return tuple(abs(size) for size in shape)


def _same(node: _Node, tensors: _Tensors) -> Shape:
    return tensors.of(node, 0)


def _broadcast(node: _Node, tensors: _Tensors) -> Shape:
    shapes = [tensors.shapes[name] for name in node.inputs if name]
    most = max(len(shape) for shape in shapes)
    columns = zip(*((1,) * (most - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(max(sizes) if max(sizes) > 1 else min(sizes) for sizes in columns)


def _window(node: _Node, sides: int, kernel: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return stride, reach, padding and the place for each axis of a window. Raises ValueError."""
    if any(name == "auto_pad" for name in node.numbers):
        raise ValueError
    strides = node.numbers.get("strides", (1,) * sides)
    dilations = node.numbers.get("dilations", (1,) * sides)
    pads = node.numbers.get("pads", (0,) * 2 * sides)
    return [
        (strides[axis], dilations[axis] * (kernel[axis] - 1) + 1, pads[axis] + pads[axis + sides], axis)
        for axis in range(sides)
    ]


def _windowed(node: _Node, shape: Shape, kernel: Sequence[int]) -> Shape:
    up = node.one("ceil_mode", 0)
    sizes = []
    for stride, reach, padding, axis in _window(node, len(kernel), kernel):
        room = shape[2 + axis] + padding - reach
        sizes.append((-(-room // stride) if up else room // stride) + 1)
    return tuple(sizes)


def _conv(node: _Node, tensors: _Tensors) -> Shape:
    shape, weights = tensors.of(node, 0), tensors.of(node, 1)
    return (shape[0], weights[0], *_windowed(node, shape, weights[2:]))


def _pool(node: _Node, tensors: _Tensors) -> Shape:
    shape = tensors.of(node, 0)
    return (*shape[:2], *_windowed(node, shape, node.numbers["kernel_shape"]))


def _conv_transpose(node: _Node, tensors: _Tensors) -> Shape:
    shape, weights = tensors.of(node, 0), tensors.of(node, 1)
    more = node.numbers.get("output_padding", (0,) * (len(weights) - 2))
    sizes = [
        stride * (shape[2 + axis] - 1) + reach - padding + more[axis]
        for stride, reach, padding, axis in _window(node, len(weights) - 2, weights[2:])
    ]
    return (shape[0], weights[1] * node.one("group", 1), *sizes)


def _gemm(node: _Node, tensors: _Tensors) -> Shape:
    rows, weights = tensors.of(node, 0), tensors.of(node, 1)
    return (rows[node.one("transA", 0)], weights[1 - node.one("transB", 0)])


def _matmul(node: _Node, tensors: _Tensors) -> Shape:
    rows, columns = tensors.of(node, 0), tensors.of(node, 1)
    if min(len(rows), len(columns)) < 2:
        raise ValueError
    before = max(rows[:-2], columns[:-2], key=len)
    return (*before, rows[-2], columns[-1])


def _reshape(node: _Node, tensors: _Tensors) -> Shape:
    shape, asked = tensors.of(node, 0), tensors.values[node.inputs[1]]
    kept = [shape[axis] if size == 0 else size for axis, size in enumerate(asked)]
    known = math.prod(abs(size) for size in shape)
    fixed = math.prod(size for size in kept if size > 0)
    free = [axis for axis, size in enumerate(kept) if size == -1]
    if shape[0] == -1:  # the batch stays in front, or the reshape mixes rows
        if kept[0] != -1 or known % fixed:
            raise ValueError
        free = free[1:]
    if free:
        kept[free[0]] = known // fixed
    return tuple(kept)


def _flatten(node: _Node, tensors: _Tensors) -> Shape:
    shape, axis = tensors.of(node, 0), node.one("axis", 1)
    if axis != 1:
        raise ValueError
    return (shape[0], math.prod(shape[1:]))


def _unsqueeze(node: _Node, tensors: _Tensors) -> Shape:
    made, axes = list(tensors.of(node, 0)), tensors.constant(node, 1, "axes")
    whole = len(made) + len(axes)
    for axis in sorted(axis % whole for axis in axes):
        made.insert(axis, 1)
    return tuple(made)


def _squeeze(node: _Node, tensors: _Tensors) -> Shape:
    shape, axes = tensors.of(node, 0), tensors.constant(node, 1, "axes")
    gone = {axis % len(shape) for axis in axes}
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _transpose(node: _Node, tensors: _Tensors) -> Shape:
    shape = tensors.of(node, 0)
    return tuple(shape[axis] for axis in node.numbers["perm"])


def _concat(node: _Node, tensors: _Tensors) -> Shape:
    shapes = [tensors.shapes[name] for name in node.inputs]
    axis = node.numbers["axis"][0] % len(shapes[0])
    sizes = [shape[axis] for shape in shapes]
    if -1 in sizes:
        raise ValueError
    batch = min(shape[0] for shape in shapes)
    made = [*shapes[0]]
    made[axis] = sum(sizes)
    return tuple(batch if place == 0 and axis else size for place, size in enumerate(made))


def _parts(node: _Node, tensors: _Tensors) -> dict[str, Shape]:
    """Return the shape of each output of a Split whose sizes are given."""
    shape, axis = tensors.of(node, 0), node.one("axis", 0)
    sizes = tensors.constant(node, 1, "split")
    before, after = shape[: axis % len(shape)], shape[axis % len(shape) + 1 :]
    return {name: (*before, size, *after) for name, size in zip(node.outputs, sizes, strict=True)}


def _reduce(node: _Node, tensors: _Tensors) -> Shape:
    shape = tensors.of(node, 0)
    gone = {axis % len(shape) for axis in tensors.constant(node, 1, "axes")}
    if node.one("keepdims", 1):
        return tuple(1 if axis in gone else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _global_pool(node: _Node, tensors: _Tensors) -> Shape:
    shape = tensors.of(node, 0)
    return (*shape[:2], *(1 for _ in shape[2:]))


_Rule = Callable[[_Node, _Tensors], Shape]

REDUCTIONS = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare")

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(
        (
            *(
                "BatchNormalization",
                "Cast",
                "Clip",
                "DequantizeLinear",
                "Dropout",
                "Elu",
                "Erf",
                "Exp",
                "Gelu",
            ),
            *(
                "HardSigmoid",
                "HardSwish",
                "Identity",
                "InstanceNormalization",
                "LayerNormalization",
                "LeakyRelu",
            ),
            *(
                "Log",
                "LogSoftmax",
                "Neg",
                "QuantizeLinear",
                "Relu",
                "Round",
                "Sigmoid",
                "Softmax",
                "Softplus",
            ),
            *("Sqrt", "Tanh"),
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "LessOrEqual", "Max", "Mean", "Mul"),
            *("Pow", "Sub", "Sum", "Where"),
        ),
        _broadcast,
    ),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
