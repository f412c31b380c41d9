"""Tiny models, made on the spot."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import (
    GRADIENT_SUFFIX,
    MANIFEST_FILE,
    MODEL_FILE,
    Manifest,
    TensorSpec,
    sha256_of,
)
from service.models.tensors import dtype_of

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))


PROBABILITIES = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))


DIGITS = tuple("0123456789")


LATENT = 6


def first_pixel_classifier() -> onnx.ModelProto:
    """A graph whose answer tells which image it saw: label d is certain when the first pixel ends in d."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Slice", ["flat", "zero", "one", "one"], ["first"]),
        helper.make_node("Squeeze", ["first", "one"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["number"], to=TensorProto.INT64),
        helper.make_node("Mod", ["number", "ten"], ["index"]),
        helper.make_node("OneHot", ["index", "ten", "off_on"], ["probabilities"], axis=-1),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([10], np.int64), "ten"),
        numpy_helper.from_array(np.array([0.0, 1.0], np.float32), "off_on"),
    ]
    return make_model(nodes, constants, (IMAGES,), (PROBABILITIES,))


def add_scored(models_dir: Path, name: str = "first-pixel", version: int = 1) -> Path:
    """Write a first-pixel classifier whose ood_score is the brightest pixel; it abstains above 99."""
    graph = first_pixel_classifier()
    graph.graph.node.extend(
        [
            helper.make_node("Cast", ["flat"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["floats"], ["ood_score"], axes=[1], keepdims=0),
        ]
    )
    graph.graph.output.append(helper.make_tensor_value_info("ood_score", TensorProto.FLOAT, ["rows"]))
    outputs = (PROBABILITIES, TensorSpec(name="ood_score", datatype="FP32", shape=(-1,)))
    folder = write_model(
        models_dir,
        graph,
        name=name,
        task="classification",
        inputs=(IMAGES,),
        outputs=outputs,
        version=version,
    )
    path = folder / MANIFEST_FILE
    manifest = Manifest.model_validate_json(path.read_text()).model_copy(update={"abstain_above": 99.0})
    path.write_text(manifest.model_dump_json())
    return folder


def ramp_generator() -> onnx.ModelProto:
    """A graph whose image is z times a fixed matrix, plus ten times the label: cheap but not trivial."""
    weights = np.random.default_rng(0).normal(0, 20, (LATENT, 784)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["z", "weights"], ["product"]),
        helper.make_node("Cast", ["label"], ["label_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["label_float", "ten"], ["offset"]),
        helper.make_node("Unsqueeze", ["offset", "one"], ["column"]),
        helper.make_node("Add", ["product", "column"], ["sum"]),
        helper.make_node("Clip", ["sum", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["pixels"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["pixels", "shape"], ["images"]),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array(10.0, np.float32), "ten"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array(0.0, np.float32), "low"),
        numpy_helper.from_array(np.array(255.0, np.float32), "high"),
        numpy_helper.from_array(np.array([-1, 28, 28], np.int64), "shape"),
    ]
    return make_model(nodes, constants, (z_spec(), LABEL), (IMAGES,))


def add_encoder(
    models_dir: Path, name: str = "ramp-encoder", version: int = 1, *, labelled: bool = True
) -> Path:
    """An encoder whose z is the first pixels divided by ten, plus the label; `opposite` is its negation."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Slice", ["flat", "zero", "size", "one"], ["first"]),
        helper.make_node("Cast", ["first"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "ten"], ["tenths" if labelled else "mean"]),
    ]
    if labelled:
        nodes += [
            helper.make_node("Cast", ["label"], ["label_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["label_float", "one"], ["column"]),
            helper.make_node("Add", ["tenths", "column"], ["mean"]),
        ]
    nodes.append(helper.make_node("Neg", ["mean"], ["opposite"]))
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([LATENT], np.int64), "size"),
        numpy_helper.from_array(np.array(10.0, np.float32), "ten"),
    ]
    inputs = (IMAGES, LABEL) if labelled else (IMAGES,)
    outputs = tuple(
        TensorSpec(name=each, datatype="FP32", shape=(-1, LATENT)) for each in ("mean", "opposite")
    )
    graph = make_model(nodes, constants, inputs, outputs)
    return write_model(
        models_dir, graph, name=name, task="encoding", inputs=inputs, outputs=outputs, version=version
    )


LABEL = TensorSpec(name="label", datatype="INT64", shape=(-1,))


def add_gradient(models_dir: Path, of: str = "first-pixel", version: int = 1) -> Path:
    """A gradient model that says of each pixel the label's number and one."""
    floats = TensorSpec(name="images", datatype="FP32", shape=IMAGES.shape)
    gradient = TensorSpec(name="gradient", datatype="FP32", shape=IMAGES.shape)
    nodes = [
        helper.make_node("Cast", ["label"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "axes"], ["numbers"]),
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Add", ["numbers", "one"], ["next"]),
        helper.make_node("Expand", ["next", "shape"], ["gradient"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    graph = make_model(nodes, constants, (floats, LABEL), (gradient,))
    return write_model(
        models_dir,
        graph,
        name=f"{of}{GRADIENT_SUFFIX}",
        task="gradient",
        inputs=(floats, LABEL),
        outputs=(gradient,),
        version=version,
    )


def z_spec() -> TensorSpec:
    return TensorSpec(name="z", datatype="FP32", shape=(-1, LATENT))


def write_model(
    models_dir: Path,
    graph: onnx.ModelProto,
    *,
    name: str,
    task: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    version: int = 1,
    labels: tuple[str, ...] = DIGITS,
) -> Path:
    """Write models_dir/name/version with a true manifest; returns the version's folder."""
    folder = models_dir / name / str(version)
    folder.mkdir(parents=True)
    onnx.save(graph, folder / MODEL_FILE)
    manifest = Manifest(
        name=name,
        version=version,
        task=task,
        inputs=inputs,
        outputs=outputs,
        labels=labels,
        sha256=sha256_of(folder / MODEL_FILE),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


def mean_classifier(models_dir: Path) -> Path:
    """A graph with a convolution: the first probability is the image's mean over 255, the second the rest."""
    filters = np.zeros((10, 1, 28, 28), np.float32)
    filters[0], filters[1] = 1 / 784 / 255, -1 / 784 / 255
    nodes = [
        helper.make_node("Unsqueeze", ["images", "one"], ["channel"]),
        helper.make_node("Cast", ["channel"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "filters", "biases"], ["means"]),
        helper.make_node("Flatten", ["means"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(filters, "filters"),
        numpy_helper.from_array(np.eye(1, 10, 1, dtype=np.float32)[0], "biases"),
    ]
    graph = make_model(nodes, constants, (IMAGES,), (PROBABILITIES,))
    return write_model(
        models_dir, graph, name="mean", task="classification", inputs=(IMAGES,), outputs=(PROBABILITIES,)
    )


def make_model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", _values(inputs), _values(outputs), constants)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            spec.name, helper.np_dtype_to_tensor_dtype(dtype_of(spec)), ["batch", *spec.shape[1:]]
        )
        for spec in specs
    ]


def images(*first_pixels: int) -> np.ndarray:
    batch = np.random.default_rng(1).integers(0, 256, (len(first_pixels), 28, 28), np.uint8)
    batch[:, 0, 0] = first_pixels
    return batch


def template_classifier() -> onnx.ModelProto:
    """A graph that reads the ten shipped digits: the most similar of them, by cosine."""
    digits = np.fromfile(Path(__file__).parents[1] / "digits" / "digits.raw", np.uint8).reshape(10, 784)
    templates = digits.astype(np.float32)
    templates /= 12.75 * np.linalg.norm(templates, axis=1, keepdims=True)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "templates"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [numpy_helper.from_array(np.ascontiguousarray(templates.T), "templates")]
    return make_model(nodes, constants, (IMAGES,), (PROBABILITIES,))


def add_reader(models_dir: Path) -> None:
    write_model(
        models_dir,
        template_classifier(),
        name="template",
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
    )


VECTORS_OF_WORDS = np.arange(24, dtype=np.float32).reshape(8, 3)


def add_words(models_dir: Path) -> Path:
    """A model of no other task: it fails for words that are not in its table, and gives -inf for 0.

    Its input `label` holds no labels.
    """
    inputs = (
        TensorSpec(name="words", datatype="INT64", shape=(-1, 4)),
        TensorSpec(name="label", datatype="FP32", shape=(-1, 2)),
    )
    outputs = (
        TensorSpec(name="vectors", datatype="FP32", shape=(-1, 4, 3)),
        TensorSpec(name="logarithms", datatype="FP32", shape=(-1, 2)),
    )
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["vectors"]),
        helper.make_node("Log", ["label"], ["logarithms"]),
    ]
    graph = make_model(nodes, [numpy_helper.from_array(VECTORS_OF_WORDS, "table")], inputs, outputs)
    return write_model(models_dir, graph, name="words", task="inference", inputs=inputs, outputs=outputs)


def words_body(words: Sequence[int]) -> dict[str, object]:
    """The JSON of a request with one row for each word, which the row repeats."""
    rows, repeated = len(words), [[each] * 4 for each in words]
    return {
        "inputs": [
            {
                "name": "words",
                "shape": [rows, 4],
                "datatype": "INT64",
                "data": repeated,
            },
            {"name": "label", "shape": [rows, 2], "datatype": "FP32", "data": [1] * 2 * rows},
        ]
    }
