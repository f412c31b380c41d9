from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from training.families.attention import save_attention


def corners(path: Path) -> None:
    """A graph that attends to an image's own pixels at every fourth place."""
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["images", "start", "stop", "axes", "step"], ["places"]),
            helper.make_node("Cast", ["places"], ["attention"], to=TensorProto.FLOAT),
        ],
        "corners",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])],
        [helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["rows", 7, 7])],
        [
            helper.make_tensor(name, TensorProto.INT64, [2], value)
            for name, value in (("start", [0, 0]), ("stop", [28, 28]), ("axes", [1, 2]), ("step", [4, 4]))
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_each_row_of_images_lies_above_its_maps_in_squares(tmp_path: Path) -> None:
    corners(tmp_path / "model.onnx")
    images = np.zeros((24, 28, 28), np.uint8)  # two rows, and four that do not fill a third
    images[:, 0, 0] = 20
    images[13, 8, 12] = 40  # row 2, column 3 of the map
    save_attention(tmp_path / "model.onnx", images, tmp_path / "attention.png")
    picture = np.asarray(Image.open(tmp_path / "attention.png"))
    assert picture.shape == (4 * 28, 280)
    first, maps, second, more = picture.reshape(4, 28, 10, 28).swapaxes(1, 2)
    np.testing.assert_array_equal(first, images[:10])
    np.testing.assert_array_equal(second, images[10:20])
    assert (maps[:, :4, :4] == 255).all()
    assert maps.sum() == 10 * 16 * 255
    assert (more[3, 8:12, 12:16] == 255).all()
    assert (more[3, :4, :4] == 128).all()  # half of this map's maximum, rounded
