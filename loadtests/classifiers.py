"""Classifiers made on the spot: graphs from images (rows, 28, 28) to probabilities (rows, 10)."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, TensorSpec, sha256_of

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
PROBABILITIES = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))


def graph_of(
    name: str, nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    """Return the graph of these nodes, which read `images` and make `probabilities`."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    body = helper.make_graph(nodes, name, [images], [output], constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write(models_dir: Path, name: str, graph: onnx.ModelProto) -> Path:
    """Write version 1 of a model with a true manifest; returns its graph's path."""
    folder = models_dir / name / "1"
    folder.mkdir(parents=True)
    onnx.save(graph, folder / MODEL_FILE)
    manifest = Manifest(
        name=name,
        version=1,
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
        labels=tuple("0123456789"),
        sha256=sha256_of(folder / MODEL_FILE),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder / MODEL_FILE
