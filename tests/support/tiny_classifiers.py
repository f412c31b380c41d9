"""Tiny classifiers of small IDX files that need no training: one in torch, one in ONNX."""

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from training.datasets.splits import CLASSES, Splits


class LinearClassifier(nn.Module):
    """A linear classifier; `drift` is added to its probabilities where it is exported, not in torch."""

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(28 * 28, 10)
        self.drift = drift

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(images.flatten(1).float() / 255)
        drift = self.drift if torch.compiler.is_compiling() else 0.0
        return logits.softmax(1) + drift, logits


def hidden_layer_classifier(splits: Splits) -> onnx.ModelProto:
    """784-16-10, as training exports it: the hidden units look for the mean images of the classes."""
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
