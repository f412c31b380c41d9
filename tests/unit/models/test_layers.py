"""Layers read from graphs: the shipped ones against onnx's own shape inference, and broken files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import RepositoryError
from service.models.layers import read_layers
from tests.support.models import first_pixel_classifier
from training.cost import multiply_adds

MODELS = Path(__file__).parents[3] / "models"
SHIPPED = sorted(MODELS.glob("*/*/model.onnx"))
WHOLE = ("cnn", "cnn-ensemble", "cnn-int8", "gan", "judge", "mlp", "mlp-int8")
"""Models whose every layer has a known shape."""


def inferred(path: Path) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    return {
        value.name: tuple(size.dim_value or -1 for size in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }


@pytest.mark.parametrize("path", SHIPPED, ids=[path.parts[-3] for path in SHIPPED])
def test_the_shapes_of_shipped_models_are_those_that_onnx_infers(path: Path) -> None:
    layers, expected = read_layers(path), inferred(path)
    graph = onnx.load(path).graph
    assert [layer.operator for layer in layers] == [node.op_type for node in graph.node]
    for layer, node in zip(layers, graph.node, strict=True):
        if layer.shape is not None and -1 not in expected.get(node.output[0], (-1,))[1:]:
            assert layer.shape == expected[node.output[0]], layer
    if path.parts[-3] in WHOLE:
        assert all(layer.shape is not None for layer in layers)
        assert sum(layer.multiply_adds or 0 for layer in layers) == multiply_adds(path)
        floats = [each for each in graph.initializer if each.data_type != TensorProto.INT64]
        sizes = [int(np.prod(each.dims)) for each in floats]
        assert sum(layer.parameters for layer in layers) == sum(size for size in sizes if size > 1)


def test_layers_name_those_that_they_read_from() -> None:
    layers = read_layers(MODELS / "mlp" / "1" / "model.onnx")
    split = next(layer for layer in layers if layer.operator == "Split")
    assert [layer.operator for layer in layers if split.name in layer.inputs] == ["Add", "ReduceSumSquare"]
    layers = [layer for layer in layers if not layer.name.startswith("ood_")]
    assert layers[0].inputs == ()
    assert [layer.inputs for layer in layers[1:]] == [(layer.name,) for layer in layers[:-1]]
    assert (layers[4].operator, layers[4].shape, layers[4].parameters) == ("Gemm", (-1, 2048), 785 * 2048)


def test_weights_may_be_nodes(tmp_path: Path) -> None:
    """torch.onnx.export writes sizes, and other exporters all weights, as nodes `Constant`."""
    path = MODELS / "cnn" / "1" / "model.onnx"
    model = onnx.load(path)
    constants = [
        helper.make_node("Constant", [], [each.name], value=each) for each in model.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "model.onnx")
    assert read_layers(tmp_path / "model.onnx") == read_layers(path)


def test_what_follows_an_unknown_operator_is_unknown(tmp_path: Path) -> None:
    onnx.save(first_pixel_classifier(), tmp_path / "model.onnx")
    shapes = {layer.operator: layer.shape for layer in read_layers(tmp_path / "model.onnx")}
    assert (shapes["Flatten"], shapes["Slice"], shapes["Squeeze"]) == ((-1, 784), None, None)


def test_a_product_of_unknown_size_has_an_unknown_cost(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("MatMul", ["places", "weights"], ["y"]),
    ]
    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "weights")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [x], [y], [weights])), path)
    first, second = read_layers(path)
    assert (first.name, first.multiply_adds) == ("NonZero_0", 0)
    assert (second.parameters, second.multiply_adds) == (12, None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"not a graph"])
def test_other_files_are_no_graphs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(RepositoryError, match="is not an ONNX graph"):
        read_layers(path)
