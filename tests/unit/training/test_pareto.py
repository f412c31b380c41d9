"""What classifiers cost: the front of the points, and the command."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.reports.pareto import Point, front

POINTS = st.lists(st.tuples(st.integers(90, 94), st.integers(1, 5)), min_size=1, max_size=8)


@given(POINTS)
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(pairs: list[tuple[int, int]]) -> None:
    points = [
        Point(str(number), accuracy / 100, 1, {64: cost}) for number, (accuracy, cost) in enumerate(pairs)
    ]
    best = [point for point in points if point.name in front(points, 64)]
    for point in points:
        better = [
            other
            for other in best
            if other.accuracy >= point.accuracy
            and other.microseconds[64] <= point.microseconds[64]
            and (other.accuracy, other.microseconds) != (point.accuracy, point.microseconds)
        ]
        assert bool(better) == (point not in best)


def test_pareto_measures_every_classifier_and_draws_them(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--models-dir", str(workshop.models), "--data-dir", str(workshop.data_dir)]
    assert main(["pareto", *options, "--output-dir", str(tmp_path / "pareto")]) == 0
    points = json.loads((tmp_path / "pareto" / "pareto.json").read_text())["points"]
    assert sorted(point["name"] for point in points) == ["cnn", "judge"]
    sizes = {point["name"]: point["size"] for point in points}
    assert sizes["cnn"] == (workshop.models / "cnn" / "1" / "model.onnx").stat().st_size
    assert all(value > 0 for point in points for value in point["microseconds"].values())
    assert (tmp_path / "pareto" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "| **`" in capsys.readouterr().out
