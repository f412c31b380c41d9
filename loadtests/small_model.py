"""A classifier that costs next to nothing: what is measured beside it is the service itself.

One matrix product of a row's bytes, and a softmax.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, TensorSpec, sha256_of

NAME = "small"
IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
PROBABILITIES = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))


def write(models_dir: Path) -> Path:
    """Write version 1 of the model `small`; returns its graph's path."""
    folder = models_dir / NAME / "1"
    folder.mkdir(parents=True)
    onnx.save(graph(), folder / MODEL_FILE)
    manifest = Manifest(
        name=NAME,
        version=1,
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
        labels=tuple("0123456789"),
        sha256=sha256_of(folder / MODEL_FILE),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder / MODEL_FILE


def graph() -> onnx.ModelProto:
    """The graph: images (rows, 28, 28) to probabilities (rows, 10)."""
    weights = np.random.default_rng(0).normal(0, 1e-3, (784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Cast", ["flat"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    constants = [numpy_helper.from_array(weights, "weights")]
    body = helper.make_graph(nodes, NAME, [images], [output], constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model
