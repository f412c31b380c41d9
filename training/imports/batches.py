"""Frees the batch axis of a graph that was exported for batches of one size.

Its nodes are run one by one, for batches of that size and of another: the shapes tell where the batch is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from training.imports.network import silent
from training.onnx_files import constant_node, open_graph, replace_parts

Shape = tuple[int, ...]

SIZE = "batch.size"
"""A tensor that the changed nodes read: the size of the batch, (1,)."""

MOST_RETURNS = 500
"""How often a choice may be taken back, so that a graph that no choice suits is given up."""


def free_batch_axis(model: ModelProto, batch: int, rows: Mapping[str, NDArray[Any]]) -> None:
    """Let a graph take batches of any size, if its nodes show how. The caller must compare the results.

    The target of a reshape may leave two places for the batch. The second one is tried if the first makes a
    later node fail.

    batch: the size that it was exported for. rows: values for its inputs, more than that.
    """
    graph = model.graph
    trace = _Trace(model, batch, rows)
    made: list[list[NodeProto]] = []
    choices: list[tuple[int, _Trace]] = []
    returns, second = 0, False
    while len(made) < len(graph.node):
        number = len(made)
        node = NodeProto()
        node.CopyFrom(graph.node[number])
        added, other = trace.change(node, f"batch.{number}", second=second)
        if other and not second:
            choices.append((number, trace.copy()))
        second = not trace.run([*added, node]) and bool(choices) and returns < MOST_RETURNS
        if second:
            number, trace = choices.pop()
            del made[number:]
            returns += 1
        else:
            made.append([*added, node])
    del graph.value_info[:]  # it tells the old sizes
    changed = [node for nodes in made for node in nodes]
    replace_parts(graph.node, [*_batch_size(graph.input[0].name), *changed])


def _batch_size(input_name: str) -> list[NodeProto]:
    return [
        helper.make_node("Shape", [input_name], ["batch.shape"]),
        constant_node("batch.axis", np.array([0])),
        helper.make_node("Gather", ["batch.shape", "batch.axis"], [SIZE]),
    ]


class _Trace:
    """The tensors of a graph for batches of two sizes, as far as its nodes have run."""

    def __init__(self, model: ModelProto, batch: int, rows: Mapping[str, NDArray[Any]]) -> None:
        self._model = model
        self._rows = batch
        constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        small = {name: values[:batch] for name, values in rows.items()}
        self._batches = [
            {**constants, **each, SIZE: np.array([len(next(iter(each.values())))])} for each in (small, rows)
        ]

    def copy(self) -> "_Trace":
        """Return the same state, which nodes that run later do not change."""
        copied = copy(self)
        copied._batches = [dict(tensors) for tensors in self._batches]
        return copied

    def run(self, nodes: Iterable[NodeProto]) -> bool:
        """Run nodes for both batches; returns whether both run alike, as far as one runs at all."""
        alike = True
        for node in nodes:
            ran = [self._run(node, tensors) for tensors in self._batches]
            alike = alike and ran[0] == ran[1]
        return alike

    def _run(self, node: NodeProto, tensors: dict[str, NDArray[Any]]) -> bool:
        try:
            tensors |= _run(self._model, node, {name: tensors[name] for name in node.input if name})
        except Exception:  # onnxruntime's own types, and KeyError: what an unknown tensor makes is unknown
            return False
        return True

    def change(self, node: NodeProto, name: str, *, second: bool) -> tuple[list[NodeProto], bool]:
        """Make a node take any batch.

        Returns the nodes that it then needs, and whether the batch has a second place in a reshape.
        name: begins the outputs of the new nodes. second: take the second place.
        """
        if node.op_type == "Concat":
            return self._repeat_constants(node, name), False
        if node.op_type not in ("Expand", "Gather", "Reshape"):
            return [], False
        axis, second_input = self._batch_axis(node.input[0]), self._constant(node.input[1])
        if axis is None or second_input is None:
            return [], False
        tensor = self._batches[0][node.input[0]]
        if node.op_type == "Expand":
            return _own_size(node, name, tensor, axis, second_input), False
        if node.op_type == "Reshape":
            return self._change_reshape(node, name, tensor, axis, second_input.tolist(), second=second)
        if not _is_view(tensor, second_input):
            return [], False
        node.CopyFrom(helper.make_node("Reshape", [node.input[0], name], node.output))
        return self._change_reshape(node, name, tensor, axis, list(second_input.shape), second=second)

    def _change_reshape(
        self, node: NodeProto, name: str, tensor: NDArray[Any], axis: int, sizes: list[int], *, second: bool
    ) -> tuple[list[NodeProto], bool]:
        """sizes: the node's target. tensor, axis: what it reshapes, and the axis of the batch in it."""
        made = _reshaped(tensor, sizes)
        places = [] if made is None else _places(tensor.shape, axis, made)
        if not places:
            return [], False
        place = places[-1 if second else 0]
        if sizes[place] == -1 or (sizes[place] == 0 and place == axis):
            return [], len(places) > 1
        node.input[1] = name
        return self._resized(name, sizes, place), len(places) > 1

    def _repeat_constants(self, node: NodeProto, name: str) -> list[NodeProto]:
        """Give a concatenation its constants once per row, such as the class token of a Transformer."""
        axes = {axis for each in node.input if (axis := self._batch_axis(each)) is not None}
        if len(axes) != 1 or axes == {helper.get_node_attr_value(node, "axis")}:
            return []
        (axis,) = axes
        nodes = []
        for place, operand in enumerate(node.input):
            constant = self._constant(operand)
            if constant is not None and constant.ndim > axis:
                row, sizes, repeated = f"{name}.{place}.row", f"{name}.{place}.sizes", f"{name}.{place}"
                nodes.append(constant_node(row, constant.take([0], axis)))
                nodes += self._resized(sizes, constant.shape, axis, can_infer=False)
                nodes.append(helper.make_node("Expand", [row, sizes], [repeated]))
                node.input[place] = repeated
        return nodes

    def _resized(
        self, name: str, sizes: Sequence[int], place: int, *, can_infer: bool = True
    ) -> list[NodeProto]:
        """Return nodes that compute these sizes, with the batch's own in one place.

        can_infer: whether -1 may stand for a size, as in the target of a reshape.
        """
        if can_infer and -1 not in sizes:
            return [constant_node(name, np.array([*sizes[:place], -1, *sizes[place + 1 :]]))]
        factor, before, own, after = (f"{name}.{part}" for part in ("factor", "before", "own", "after"))
        return [
            constant_node(factor, np.array([sizes[place] // self._rows])),
            helper.make_node("Mul", [SIZE, factor], [own]),
            constant_node(before, np.array(sizes[:place], np.int64)),
            constant_node(after, np.array(sizes[place + 1 :], np.int64)),
            helper.make_node("Concat", [before, own, after], [name], axis=0),
        ]

    def _batch_axis(self, name: str) -> int | None:
        """Return the axis of a tensor that grows with the batch, or None if it is unknown."""
        if any(name not in tensors for tensors in self._batches):
            return None
        one, other = (tensors[name].shape for tensors in self._batches)
        growing = [axis for axis, sizes in enumerate(zip(one, other, strict=False)) if sizes[0] != sizes[1]]
        return growing[0] if len(one) == len(other) and len(growing) == 1 else None

    def _constant(self, name: str) -> NDArray[Any] | None:
        """Return a tensor that is the same for both batches, or None if it is not, or unknown."""
        one, other = (tensors.get(name) for tensors in self._batches)
        return one if one is not None and other is not None and np.array_equal(one, other) else None


def _is_view(tensor: NDArray[Any], places: NDArray[Any]) -> bool:
    """Whether all of a flat tensor is gathered in order, as torch's newer exporter writes some views."""
    return tensor.ndim == 1 <= places.ndim and np.array_equal(places.ravel(), np.arange(len(tensor)))


def _own_size(
    node: NodeProto, name: str, tensor: NDArray[Any], axis: int, target: NDArray[Any]
) -> list[NodeProto]:
    """Let an expansion keep the tensor's own size in the axis of the batch; return the node that it needs."""
    if len(target) < tensor.ndim:
        return []
    sizes = target.copy()
    sizes[axis + len(sizes) - tensor.ndim] = 1
    node.input[1] = name
    return [constant_node(name, sizes)]


def _reshaped(tensor: NDArray[Any], target: Sequence[int]) -> Shape | None:
    """Return the shape that a reshape to this target makes, or None if it fails. 0 keeps an axis."""
    kept = dict(enumerate(tensor.shape))
    try:
        return tensor.reshape([kept[place] if size == 0 else size for place, size in enumerate(target)]).shape
    except (KeyError, ValueError):
        return None


def _places(shape: Shape, axis: int, made: Shape) -> list[int]:
    """Return the places that the batch, an axis of `shape`, may have in the shape that a reshape makes.

    First the one with as much before it as in `shape`: the batch may be merged with what follows. Then the
    one with as much behind it: it may be merged with what comes before.
    """
    before, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    firsts = [place for place in range(len(made)) if math.prod(made[:place]) == before]
    lasts = [place for place in range(len(made)) if math.prod(made[place + 1 :]) == behind]
    return list(dict.fromkeys([*firsts[:1], *lasts[-1:]]))


def _run(model: ModelProto, node: NodeProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    names = [name for name in node.output if name]
    return dict(zip(names, open_graph(whole).run(names, inputs, silent()), strict=True))
