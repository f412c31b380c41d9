from pathlib import Path

import numpy as np
from PIL import Image

from training.families.grids import grid_labels, save_grid


def test_grid_runs_from_left_to_right_then_down(tmp_path: Path) -> None:
    images = np.zeros((20, 28, 28), np.uint8)
    images[11] = 200
    save_grid(images, tmp_path / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (56, 280)
    assert (picture[28:, 28:56] == 200).all()
    assert picture.sum() == 200 * 28 * 28


def test_grid_has_a_row_of_each_class() -> None:
    assert grid_labels().reshape(10, 10)[7].tolist() == [7] * 10
