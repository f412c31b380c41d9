from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from service.models.manifest import MODEL_FILE
from tests.support.tiny_classifiers import hidden_layer_classifier
from training.datasets.splits import Splits
from training.errors import QuantizationError
from training.quantization.int8 import check_integers, to_int8


def test_hidden_layers_are_integer_from_the_raw_bytes_on(splits: Splits, tmp_path: Path) -> None:
    """Read from the graph that onnxruntime optimised."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    graph = to_int8(hidden_layer_classifier(splits), splits.train.images)
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert run == ["Unsqueeze", "Reshape", "QGemm", "DequantizeLinear", "Gemm", "Softmax"]


def test_weights_have_seven_bits_so_no_sum_saturates(splits: Splits) -> None:
    graph = to_int8(hidden_layer_classifier(splits), splits.train.images)
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
    onnx.save(to_int8(hidden_layer_classifier(splits), splits.train.images), path)
    assert check_integers(path, splits.validation.images) < 0.01
    monkeypatch.setattr("training.quantization.int8.PARITY_TOLERANCE", -1.0)
    with pytest.raises(QuantizationError, match="differ by"):
        check_integers(path, splits.validation.images)
