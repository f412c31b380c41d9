"""A tiny search model and its captioning model, made on the spot.

Prompts are two bytes. The first is a digit, `d` for any digit, or anything else for a prompt without a
meaning; the second is `t` for thin and `k` for thick. The nearest image of any prompt is the brightest.
`thin slanted seven`, which /docs fills in, is a seven.
"""

from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from service.models.manifest import TensorSpec
from tests.support.models import DIGITS, IMAGES, make_model, write_model

FOUND = 3
LENGTH = 24
TEXT = TensorSpec(name="text", datatype="UINT8", shape=(-1, LENGTH))
VECTOR = TensorSpec(name="vector", datatype="FP32", shape=(-1, 2))
THIN, SLANTED = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)
ANY = (0.2, 0.6, 0.2)


def add_search(models_dir: Path, version: int = 1) -> Path:
    """The search model `text`; see the module."""
    digit = np.tile(np.eye(11, dtype=np.float32)[10], (256, 1))
    digit[48:58] = np.eye(10, 11, dtype=np.float32)
    digit[ord("t")] = digit[ord("7")]
    understood = np.full(256, 0.02, np.float32)
    understood[[*range(48, 58), *b"td"]] = 0.98
    stroke = np.tile(np.array(ANY, np.float32), (256, 1))
    stroke[ord("t")], stroke[ord("k")] = THIN, THIN[::-1]
    anything = np.tile(np.array(ANY, np.float32), (256, 1))
    numbers = np.arange(256)[:, None] % 10 * 10 + np.arange(FOUND)
    pictures = np.zeros((256, FOUND, 28, 28), np.uint8)
    pictures[:, :, 14, 14] = numbers
    tables = {
        "vector": (np.tile(np.array([1, 0], np.float32), (256, 1)), 0),
        "understood": (understood, 0),
        "digit": (digit, 0),
        "stroke": (stroke, 1),
        "slant": (anything, 0),
        "size": (anything, 0),
        "score": (np.tile(np.array([0.9, 0.8, 0.7], np.float32), (256, 1)), 0),
        "index": (numbers.astype(np.int64), 0),
        "label": (np.tile(np.arange(256)[:, None] % 48 % 10, FOUND).astype(np.int64), 0),
        "picture": (pictures, 0),
    }
    nodes = [helper.make_node("Cast", ["text"], ["codes"], to=TensorProto.INT64)]
    nodes += [
        helper.make_node("Gather", ["codes", f"place{place}"], [f"byte{place}"], axis=1) for place in (0, 1)
    ]
    nodes += [
        helper.make_node("Gather", [f"{name} table", f"byte{place}"], [name], axis=0)
        for name, (_, place) in tables.items()
    ]
    constants = [numpy_helper.from_array(np.array(place, np.int64), f"place{place}") for place in (0, 1)]
    constants += [numpy_helper.from_array(table, f"{name} table") for name, (table, _) in tables.items()]
    outputs = tuple(
        TensorSpec(name=name, datatype=_datatype(table), shape=(-1, *table.shape[1:]))
        for name, (table, _) in tables.items()
    )
    graph = make_model(nodes, constants, (TEXT,), outputs)
    return write_model(
        models_dir, graph, name="text", task="search", inputs=(TEXT,), outputs=outputs, version=version
    )


def add_captioner(models_dir: Path, version: int = 1) -> Path:
    """The captioning model `text-image`: the digit is the first pixel's last; all are thin and slanted."""
    nodes: list[NodeProto] = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("Slice", ["flat", "zero", "one", "one"], ["first"]),
        helper.make_node("Squeeze", ["first", "one"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["number"], to=TensorProto.INT64),
        helper.make_node("Mod", ["number", "ten"], ["index"]),
        helper.make_node("OneHot", ["index", "ten", "off_on"], ["digit"], axis=-1),
        helper.make_node("Cast", ["flat"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Div", ["mean", "most"], ["bright"]),
        helper.make_node("Sub", ["unit", "bright"], ["dark"]),
        helper.make_node("Concat", ["bright", "dark"], ["vector"], axis=1),
        helper.make_node("Mul", ["bright", "none"], ["nothing"]),
        *(
            helper.make_node("Add", ["nothing", f"{style} level"], [style])
            for style in ("stroke", "slant", "size")
        ),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([10], np.int64), "ten"),
        numpy_helper.from_array(np.array([0.0, 1.0], np.float32), "off_on"),
        numpy_helper.from_array(np.array(255, np.float32), "most"),
        numpy_helper.from_array(np.array(1, np.float32), "unit"),
        numpy_helper.from_array(np.array(0, np.float32), "none"),
        numpy_helper.from_array(np.array([THIN], np.float32), "stroke level"),
        numpy_helper.from_array(np.array([SLANTED], np.float32), "slant level"),
        numpy_helper.from_array(np.array([ANY], np.float32), "size level"),
    ]
    outputs = (
        TensorSpec(name="digit", datatype="FP32", shape=(-1, len(DIGITS))),
        *(TensorSpec(name=style, datatype="FP32", shape=(-1, 3)) for style in ("stroke", "slant", "size")),
        VECTOR,
    )
    graph = make_model(nodes, constants, (IMAGES,), outputs)
    return write_model(
        models_dir,
        graph,
        name="text-image",
        task="captioning",
        inputs=(IMAGES,),
        outputs=outputs,
        version=version,
    )


def _datatype(table: np.ndarray) -> str:
    return {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}[table.dtype.name]
