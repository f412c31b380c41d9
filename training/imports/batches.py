"""Frees the batch axis of a graph that was exported for batches of one size."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from training.onnx_files import constant_node

Constants = dict[str, NDArray[Any] | None]
"""Tensors that do not depend on the input, by name; None: its values are not known."""

MOST_FOLDED = 1_000_000
"""Larger constants are weights: what is computed from them is no size."""


def free_batch_axis(model: ModelProto, batch: int) -> None:
    """Let a graph take batches of any size, as far as its nodes tell how. Compare what it then computes.

    A reshape to fixed sizes gets its first size from the others. A constant that is joined to the rows, such
    as the class token of a Transformer, is repeated for each row.

    batch: the size of the batches that it was exported for.
    """
    graph = model.graph
    constants = _constants(model)
    nodes = _batch_size(graph.input[0].name)
    for number, node in enumerate(graph.node):
        if node.output[0] not in constants:
            nodes += _change(node, constants, batch, f"batch.{number}")
        nodes.append(node)
    del graph.node[:], graph.value_info[:]  # value_info tells the old sizes
    graph.node.extend(nodes)


def _constants(model: ModelProto) -> Constants:
    """Return the tensors that do not depend on the input: sizes are often computed from others."""
    constants: Constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    opsets = {each.domain: each.version for each in model.opset_import}
    for node in model.graph.node:
        if all(name in constants for name in node.input):
            constants |= dict.fromkeys(node.output)
            known = {name: constants[name] for name in node.input}
            if all(value is not None and value.size <= MOST_FOLDED for value in known.values()):
                # onnx's evaluator does not know every operator, and raises errors of many types.
                with contextlib.suppress(Exception):
                    values = ReferenceEvaluator(node, opsets=opsets).run(None, known)
                    constants |= dict(zip(node.output, map(np.asarray, values), strict=True))
    return constants


def _batch_size(input_name: str) -> list[NodeProto]:
    """Return nodes that compute "batch.size", (1,), from the input."""
    return [
        helper.make_node("Shape", [input_name], ["batch.shape"]),
        constant_node("batch.axis", np.array([0])),
        helper.make_node("Gather", ["batch.shape", "batch.axis"], ["batch.size"]),
    ]


def _change(node: NodeProto, constants: Constants, batch: int, name: str) -> list[NodeProto]:
    """Make a node take any batch; return the nodes that it then needs. name: begins their outputs' names."""
    target = constants.get(node.input[1]) if len(node.input) > 1 else None
    if node.op_type == "Reshape" and target is not None and target.size:
        node.input[1] = name
        return [constant_node(name, np.array(_free(target.tolist(), batch)))]
    if node.op_type == "Expand" and target is not None and target[:1] == batch:
        node.input[1] = name
        return _with_batch_size(name, target.tolist())
    if node.op_type == "Concat" and helper.get_node_attr_value(node, "axis") != 0:
        return _repeat_constants(node, constants, batch, name)
    return []


def _free(sizes: list[int], batch: int) -> list[int]:
    """Return the target of a reshape for any batch."""
    if min(sizes) > 0:
        return [-1, *sizes[1:]]  # the batch may be one factor of the first size
    return [0, *sizes[1:]] if sizes[0] == batch else sizes  # 0 is the reshaped tensor's own size


def _repeat_constants(node: NodeProto, constants: Constants, batch: int, name: str) -> list[NodeProto]:
    """Give a concatenation the first row of each constant that has one per row, as often as needed."""
    nodes = []
    for place, operand in enumerate(node.input):
        constant = constants.get(operand)
        if constant is not None and constant.ndim > 1 and len(constant) == batch:
            row, sizes, repeated = f"{name}.{place}.row", f"{name}.{place}.sizes", f"{name}.{place}"
            nodes += [constant_node(row, constant[:1]), *_with_batch_size(sizes, constant.shape)]
            nodes.append(helper.make_node("Expand", [row, sizes], [repeated]))
            node.input[place] = repeated
    return nodes


def _with_batch_size(name: str, sizes: Sequence[int]) -> list[NodeProto]:
    """Return nodes that compute these sizes, with the batch's as the first one."""
    rest = constant_node(f"{name}.rest", np.array(sizes[1:], np.int64))
    return [rest, helper.make_node("Concat", ["batch.size", f"{name}.rest"], [name], axis=0)]
