from pathlib import Path

from training.runs.curves import plot
from training.runs.run import CURVES_FILE


def test_curves_pair_training_and_validation(tmp_path: Path) -> None:
    line = {"epoch": 1, "train_loss": 1.0, "validation_loss": 2.0, "seconds": 3.0}
    plot([line, line | {"epoch": 2}], tmp_path / CURVES_FILE)
    assert (tmp_path / CURVES_FILE).read_bytes().startswith(b"\x89PNG")
