"""A model whose graph raises for some inputs: for rows whose pixels are all BAD.

Its index into a table of 256 rows is then beyond the end. Neither noise nor extreme values, which the service
tries when it loads a model, make it raise.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtests import classifiers

PIXELS = 784
GOOD, BAD = 3, 200
"""The pixels of rows that are answered, and of those that are not."""


def write(models_dir: Path) -> None:
    """Write the model `broken`, version 1."""
    classifiers.write(models_dir, "broken", graph())


def graph() -> onnx.ModelProto:
    """The graph: images (rows, 28, 28) to the table's rows (rows, 10)."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Cast", ["flat"], ["pixels"], to=TensorProto.INT32),
        helper.make_node("ReduceMin", ["pixels"], ["darkest"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["pixels"], ["lightest"], axes=[1], keepdims=0),
        helper.make_node("Equal", ["darkest", "lightest"], ["plain"]),
        helper.make_node("Equal", ["darkest", "bad"], ["as_dark"]),
        helper.make_node("And", ["plain", "as_dark"], ["is_bad"]),
        helper.make_node("Where", ["is_bad", "beyond", "darkest"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["probabilities"], axis=0),
    ]
    constants = [
        numpy_helper.from_array(np.array(BAD, np.int32), "bad"),
        numpy_helper.from_array(np.array(256, np.int32), "beyond"),
        numpy_helper.from_array(np.tile(np.eye(10, dtype=np.float32), (26, 1))[:256], "table"),
    ]
    return classifiers.graph_of("broken", nodes, constants)
