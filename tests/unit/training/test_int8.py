from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import MODEL_FILE
from tests.support.idx_files import write_folder
from training.datasets.splits import Splits, load
from training.errors import QuantizationError
from training.quantization.int8 import check_integers, to_int8

CLASSES = 10


def network(splits: Splits) -> onnx.ModelProto:
    """784-16-10, as training/classifier.py exports it: the hidden units look for the classes' mean images."""
    rng = np.random.default_rng(0)
    images = splits.train.images.reshape(-1, 784) / 255
    means = np.stack([images[splits.train.labels == label].mean(0) for label in range(CLASSES)])
    hidden = np.concatenate([means - means.mean(0), rng.normal(0, 0.05, (6, 784))])
    head = np.eye(CLASSES, 16) * 2
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1]),
        "most": np.array(255, np.float32),
        "flat": np.array([-1, 784]),
        "w1": hidden.astype(np.float32),
        "b1": np.full(16, -0.5, np.float32),
        "w2": head.astype(np.float32),
        "b2": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["images", "axis"], ["channel"], name="channel"),
        helper.make_node("Cast", ["channel"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "most"], ["scaled"], name="div"),
        helper.make_node("Reshape", ["scaled", "flat"], ["rows"], name="reshape"),
        helper.make_node("Gemm", ["rows", "w1", "b1"], ["sums"], name="first", transB=1),
        helper.make_node("Relu", ["sums"], ["features"], name="relu"),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"], name="last", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
    ]
    images_info = helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", CLASSES])
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "mlp", [images_info], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> Splits:
    return load(data_dir)


def test_hidden_layers_are_integer_from_the_raw_bytes_on(splits: Splits, tmp_path: Path) -> None:
    """Looks at what onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    graph = to_int8(network(splits), splits.train.images)
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert run == ["Unsqueeze", "Reshape", "QGemm", "DequantizeLinear", "Gemm", "Softmax"]


def test_weights_have_seven_bits_so_no_sum_saturates(splits: Splits) -> None:
    graph = to_int8(network(splits), splits.train.images)
    (weights,) = (
        numpy_helper.to_array(each).astype(int)
        for each in graph.graph.initializer
        if each.data_type == TensorProto.INT8 and len(each.dims) == 2
    )
    assert 255 * 2 * np.abs(weights).max() < 1 << 15
    assert np.abs(weights).max() > 32


def test_integers_that_disagree_with_float_are_refused(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / MODEL_FILE
    onnx.save(to_int8(network(splits), splits.train.images), path)
    assert check_integers(path, splits.validation.images) < 0.01
    monkeypatch.setattr("training.quantization.int8.PARITY_TOLERANCE", -1.0)
    with pytest.raises(QuantizationError, match="differ by"):
        check_integers(path, splits.validation.images)
