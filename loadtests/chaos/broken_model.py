"""A model whose graph raises for some inputs: the first pixel is an index into a table of ten rows."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, TensorSpec, sha256_of

PIXELS = 784
GOOD, BAD = 3, 200
"""First pixels: inside and outside of the table of ten rows."""

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
        helper.make_node("Slice", ["flat", "zero", "one", "one"], ["first"]),
        helper.make_node("Squeeze", ["first", "one"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["probabilities"], axis=0),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.eye(10, dtype=np.float32), "table"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    body = helper.make_graph(nodes, "broken", [images], [output], constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
