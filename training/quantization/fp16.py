"""A float32 graph as a float16 graph between the same inputs and outputs, and what a GPU computes with it.

onnxruntime's own converter does the work. What stays float32, and why, measured on 600 validation images of
MNIST and of Fashion-MNIST with every float16 tensor rounded (see `rounded`):

- The out-of-distribution score: squares of features overflow float16, whose largest number is 65,504. In
  float16 939 of the 1,200 scores of the CNN and 18 of the MLP's were not finite; in float32, from float16
  features, they differ by at most 0.25 % and 0.04 %.
- The softmax: rounded probabilities miss a sum of 1 by 0.0003 and change the likelihood of the CNN's labels
  by 0.3 %, float32 ones by less than 0.02 %.

The last layer gains nothing from float32, and generators need none of it: pixels of the GAN and the VAE
differ by at most two grey levels.
"""

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from training.confidence.graph import without_score
from training.onnx_files import strip

FLOAT32_OPERATORS = (*DEFAULT_OP_BLOCK_LIST, "Softmax")

TO_FLOAT16 = "_cast_to_fp16"
"""How the converter ends the names of the tensors that a node in float32 makes."""


def to_fp16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with float16 weights and arithmetic; its inputs and outputs stay as they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    scored = {node.name for node in graph.graph.node} - {
        node.name for node in without_score(graph).graph.node
    }
    converted = convert_float_to_float16(
        copy, keep_io_types=True, op_block_list=[*FLOAT32_OPERATORS], node_block_list=[*scored]
    )
    # The converter rounds what one float32 node hands to another, and leaves the nodes unsorted.
    model = OnnxModel(converted)
    model.disable_shape_inference()
    model.remove_cascaded_cast_nodes()
    model.remove_useless_cast_nodes()
    model.topological_sort(is_deterministic=True)
    made: onnx.ModelProto = model.model
    _restore_names(made.graph)
    strip(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def _restore_names(graph: onnx.GraphProto) -> None:
    """Give tensors that are float32 again the names that they had before the conversion."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name.removesuffix(TO_FLOAT16) for name in names]


def rounded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that computes what a GPU does with a float16 graph: every float16 tensor is rounded.

    A GPU sums products of float16 numbers in float32, and rounds each result. onnxruntime's CPU provider
    turns the weights into float32, computes in it and rounds nothing in between, so that no sum overflows.
    """
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    inferred = shape_inference.infer_shapes(graph).graph
    halves = {each.name for each in inferred.value_info if _is_half(each.type.tensor_type.elem_type)}
    for weights in made.graph.initializer:
        if _is_half(weights.data_type):
            wide = numpy_helper.to_array(weights).astype("float32")
            weights.CopyFrom(numpy_helper.from_array(wide, weights.name))
    del made.graph.node[:]
    for node in graph.graph.node:
        made.graph.node.extend(_rounding(node, halves))
    onnx.checker.check_model(made, full_check=True)
    return made


def _rounding(node: onnx.NodeProto, halves: set[str]) -> Iterator[onnx.NodeProto]:
    """A node in float32, and what rounds its float16 outputs."""
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and _is_half(attribute.i):
            attribute.i = TensorProto.FLOAT
    wide.output[:] = [f"{name}/sum" if name in halves else name for name in node.output]
    yield wide
    for name in halves.intersection(node.output):
        yield helper.make_node("Cast", [f"{name}/sum"], [f"{name}/half"], to=TensorProto.FLOAT16)
        yield helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT)


def _is_half(datatype: int) -> bool:
    return datatype == TensorProto.FLOAT16
