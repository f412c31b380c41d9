"""Which values a warm engine may not compute, in whatever batch sizes it runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import RepositoryError
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from service.serving.outputs import check_outputs
from tests.support.models import IMAGES, PROBABILITIES, make_model, write_model

# A row of the largest inputs is 255 everywhere, and one of zeros and one of the smallest inputs 0.
RANDOM_MEAN = 127.5


def write_classifier(root: Path, nodes: list[tuple[str, list[str], str]], offset: float) -> Path:
    """A graph that turns the distance of a row's mean from the offset into probabilities by these nodes."""
    constants = {"offset": [offset], "ones": np.ones(10), "tenth": [0.1], "nothing": [0.0], "near": [40.0]}
    graph = make_model(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["flat"]),
            helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1]),
            helper.make_node("Sub", ["mean", "offset"], ["distance"]),
            *(helper.make_node(operator, inputs, [output]) for operator, inputs, output in nodes),
        ],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
        (IMAGES,),
        (PROBABILITIES,),
    )
    return write_model(
        root, graph, name="odd", task="classification", inputs=(IMAGES,), outputs=(PROBABILITIES,)
    )


def check(folder: Path, buckets: tuple[int, ...]) -> None:
    manifest = read_manifest(folder)
    check_outputs(Engine(folder / MODEL_FILE, manifest, EngineOptions("cpu", 0, 1, buckets)), manifest)


BUCKETS = pytest.mark.parametrize("buckets", [(1,), (3,), (16,), (1, 16), (1, 2, 4, 8, 16)], ids=str)


@BUCKETS
@pytest.mark.parametrize(("offset", "name"), [(0.0, "zeros"), (255.0, "the largest inputs")])
def test_a_single_row_that_is_not_finite_is_found(
    tmp_path: Path, buckets: tuple[int, ...], offset: float, name: str
) -> None:
    folder = write_classifier(
        tmp_path,
        [
            ("Div", ["nothing", "distance"], "broken"),  # 0 / 0 in this row, 0 in all others
            ("Mul", ["ones", "tenth"], "even"),
            ("Add", ["even", "broken"], "probabilities"),
        ],
        offset,
    )
    with pytest.raises(RepositoryError, match=f"probabilities is not finite for {name}, "):
        check(folder, buckets)


@BUCKETS
@pytest.mark.parametrize(
    ("offset", "name"), [(255.0, "the largest inputs"), (RANDOM_MEAN, "random inputs"), (0.0, "zeros")]
)
def test_a_single_row_that_does_not_add_up_to_1_is_found(
    tmp_path: Path, buckets: tuple[int, ...], offset: float, name: str
) -> None:
    folder = write_classifier(
        tmp_path,
        [
            ("Abs", ["distance"], "far"),
            ("Less", ["far", "near"], "odd"),
            ("Where", ["odd", "ones", "tenth"], "probabilities"),
        ],
        offset,
    )
    with pytest.raises(RepositoryError, match=re.escape(f"holds 1 to 1 and adds up to 10 for {name}, ")):
        check(folder, buckets)


@BUCKETS
def test_rows_that_add_up_to_1_pass(tmp_path: Path, buckets: tuple[int, ...]) -> None:
    folder = write_classifier(
        tmp_path,
        [
            ("Mul", ["distance", "nothing"], "zero"),
            ("Add", ["zero", "ones"], "logits"),
            ("Softmax", ["logits"], "probabilities"),
        ],
        0.0,
    )
    check(folder, buckets)
