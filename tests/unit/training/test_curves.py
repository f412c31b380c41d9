from pathlib import Path
from typing import Any

import matplotlib.axes
import pytest

from training.runs.curves import plot
from training.runs.run import CURVES_FILE


def test_curves_pair_training_and_validation(tmp_path: Path) -> None:
    line = {"epoch": 1, "train_loss": 1.0, "validation_loss": 2.0, "seconds": 3.0}
    plot([line, line | {"epoch": 2}], tmp_path / CURVES_FILE)
    assert (tmp_path / CURVES_FILE).read_bytes().startswith(b"\x89PNG")


def test_metrics_of_each_class_share_a_panel_and_may_be_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []
    set_title = matplotlib.axes.Axes.set

    def record(axis: matplotlib.axes.Axes, **options: Any) -> object:
        drawn.append((options["title"], len(axis.lines)))
        return set_title(axis, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "set", record)
    recalls = {f"validation_recall_{digit}": 0.5 for digit in range(10)}
    old = {"epoch": 1, "train_loss": 1.0, "validation_loss": 2.0, "seconds": 3.0}
    plot([old, old | {"epoch": 2} | recalls], tmp_path / CURVES_FILE)
    assert drawn == [("loss", 2), ("recall", 10)]
