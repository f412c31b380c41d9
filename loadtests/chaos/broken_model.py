"""A model whose graph raises for some inputs: for rows whose pixels are all BAD.

Its index into a table of 256 rows is then beyond the end. Neither noise nor extreme values, which the service
tries when it loads a model, make it raise.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, TensorSpec, sha256_of

PIXELS = 784
GOOD, BAD = 3, 200
"""The pixels of rows that are answered, and of those that are not."""

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
PROBABILITIES = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))


def write(models_dir: Path) -> None:
    """Write the model `broken`, version 1."""
    folder = models_dir / "broken" / "1"
    folder.mkdir(parents=True)
    onnx.save(graph(), folder / MODEL_FILE)
    manifest = Manifest(
        name="broken",
        version=1,
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
        labels=tuple("0123456789"),
        sha256=sha256_of(folder / MODEL_FILE),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())


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
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    body = helper.make_graph(nodes, "broken", [images], [output], constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
