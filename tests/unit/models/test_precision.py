"""What a graph computes in, told by its weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.models.precision import is_float16


def write(path: Path, *dtypes: str) -> Path:
    """A graph that adds a constant of each dtype to its input; the first has 8 numbers, each later one 4."""
    constants = [np.zeros(4 if i else 8, dtype) for i, dtype in enumerate(dtypes)]
    weights = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(constants)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in "xy")
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "graph", [x], [y], weights)
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float16",), True),
        (("float16", "float32"), True),
        (("float32", "float16"), False),
        (("float32",), False),
        (("int8", "float32"), False),
        ((), False),
    ],
)
def test_the_datatype_of_most_weights_decides(
    dtypes: tuple[str, ...], expected: bool, tmp_path: Path
) -> None:
    assert is_float16(write(tmp_path / "model.onnx", *dtypes)) is expected


def test_weights_in_other_files_count(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", "float16")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert is_float16(path)


def test_another_format_is_not_float16(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 64)
    assert not is_float16(path)
