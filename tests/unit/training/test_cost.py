from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from service.models.manifest import MODEL_FILE, TensorSpec, read_manifest
from tests.support.models import LATENT, make_model, ramp_generator, z_spec
from tests.support.tiny_runs import Workshop
from training.cost import multiply_adds
from training.errors import EvaluationError

MAPS = TensorSpec(name="x", datatype="FP32", shape=(-1, 4, 10, 10))


def weights(*shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), "w")


def saved(graph: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(graph, folder / MODEL_FILE)
    return folder / MODEL_FILE


@pytest.mark.parametrize(
    ("operator", "attributes", "kernel", "shape", "expected"),
    [
        # places * outputs * inputs per group * kernel; transposed: of the places that are taken
        ("Conv", {}, (6, 4, 3, 3), (6, 8, 8), 64 * 6 * 4 * 9),
        ("Conv", {"strides": [2, 2]}, (6, 4, 3, 3), (6, 4, 4), 16 * 6 * 4 * 9),
        ("Conv", {"group": 2, "pads": [1, 1, 1, 1]}, (6, 2, 3, 3), (6, 10, 10), 100 * 6 * 2 * 9),
        ("ConvTranspose", {"strides": [2, 2]}, (4, 6, 2, 2), (6, 20, 20), 100 * 4 * 6 * 4),
        ("MatMul", {}, (10, 7), (4, 10, 7), 40 * 10 * 7),
    ],
)
def test_products_of_a_row_are_counted(
    operator: str,
    attributes: dict[str, object],
    kernel: tuple[int, ...],
    shape: tuple[int, ...],
    expected: int,
    tmp_path: Path,
) -> None:
    node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)  # type: ignore[arg-type]
    output = TensorSpec(name="y", datatype="FP32", shape=(-1, *shape))
    graph = make_model([node], [weights(*kernel)], (MAPS,), (output,))
    assert multiply_adds(saved(graph, tmp_path)) == expected


@pytest.mark.parametrize("transposed", [0, 1])
def test_products_of_a_dense_layer_are_counted(transposed: int, tmp_path: Path) -> None:
    dense = helper.make_node("Gemm", ["z", "w"], ["y"], transB=transposed)
    activation = helper.make_node("Relu", ["y"], ["out"])
    output = TensorSpec(name="out", datatype="FP32", shape=(-1, 9))
    shape = (9, LATENT) if transposed else (LATENT, 9)
    graph = make_model([dense, activation], [weights(*shape)], (z_spec(),), (output,))
    assert multiply_adds(saved(graph, tmp_path)) == LATENT * 9


def test_a_graph_of_the_tests_is_counted(tmp_path: Path) -> None:
    assert multiply_adds(saved(ramp_generator(), tmp_path)) == LATENT * 784


def test_a_shape_that_cannot_be_inferred_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["z"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "floats"], ["y"]),
    ]
    output = TensorSpec(name="y", datatype="FP32", shape=(-1, 5))
    graph = make_model(nodes, [weights(3, 2)], (z_spec(),), (output,))
    with pytest.raises(EvaluationError, match="the shape of floats cannot be inferred, which MatMul needs"):
        multiply_adds(saved(graph, tmp_path))


def test_a_tensor_that_is_listed_without_a_shape_is_an_error(tmp_path: Path) -> None:
    """As PaddlePaddle's exporter lists them."""
    nodes = [
        helper.make_node("Identity", ["z"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["y"]),
    ]
    output = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
    graph = make_model(nodes, [weights(LATENT, 2)], (z_spec(),), (output,))
    graph.graph.node[0].domain = "org.example"  # whose operators nobody can infer
    graph.opset_import.append(helper.make_opsetid("org.example", 1))
    graph.graph.value_info.append(helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, None))
    with pytest.raises(EvaluationError, match="the shape of hidden cannot be inferred"):
        multiply_adds(saved(graph, tmp_path))


def test_an_operator_without_a_version_is_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["z", "w"], ["y"])]
    output = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
    graph = make_model(nodes, [weights(LATENT, 2)], (z_spec(),), (output,))
    graph.graph.node[0].domain = "org.example"  # for which the file names no version
    with pytest.raises(EvaluationError, match="the shapes cannot be inferred"):
        multiply_adds(saved(graph, tmp_path))


def test_every_published_model_tells_its_cost(workshop: Workshop) -> None:
    for manifest_file in workshop.models.glob("*/*/manifest.json"):
        folder = manifest_file.parent
        cost = read_manifest(folder).metrics["multiply_adds"]
        assert cost == multiply_adds(folder / MODEL_FILE) > 0
        assert f"| multiply_adds | {cost} |" in (folder / "README.md").read_text()
