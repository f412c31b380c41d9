"""A classifier that costs next to nothing: what is measured beside it is the service itself.

One matrix product of a row's bytes, and a softmax.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtests import classifiers

NAME = "small"


def write(models_dir: Path) -> Path:
    """Write version 1 of the model `small`; returns its graph's path."""
    return classifiers.write(models_dir, NAME, graph())


def graph() -> onnx.ModelProto:
    """The graph: images (rows, 28, 28) to probabilities (rows, 10)."""
    weights = np.random.default_rng(0).normal(0, 1e-3, (784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Cast", ["flat"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [numpy_helper.from_array(weights, "weights")]
    return classifiers.graph_of(NAME, nodes, constants)
