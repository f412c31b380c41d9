"""What explanations are measured by, the command, and the page with the figures of the shipped model."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.models.manifest import read_manifest
from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.evaluation.rank_correlation import spearman
from training.reports import explanations

DOCS = Path(__file__).parents[3] / "docs"


def test_the_rank_correlation_gives_ties_their_mean_rank() -> None:
    seen = spearman(np.array([0.1, 5.0, 5.0, 9.0]), np.array([-1.0, 3.0, 2.0, 70.0]))
    assert seen == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert spearman(np.arange(5.0), np.arange(5.0) ** 3) == 1
    assert spearman(np.ones(4), np.arange(4.0)) == 0


def test_pixels_are_removed_and_shown_in_the_order_of_their_values() -> None:
    image = np.full((28, 28), 9, np.uint8)
    values = np.zeros((28, 28))
    values[3, :14] = 1
    removed, added = explanations.steps(image, values)
    assert np.array_equal(removed[0], image)
    assert not added[0].any()
    assert np.flatnonzero(added[1].any(1)).tolist() == [3]
    assert added[1].sum() == 14 * 9
    assert np.array_equal(removed + added, np.broadcast_to(image, removed.shape))
    assert len(removed) == explanations.MOST_PIXELS // explanations.PIXELS_A_STEP + 1


def test_the_area_under_a_line_is_its_mean() -> None:
    assert explanations.area([1.0, 0.5, 0.0]) == 0.5


def test_randomised_weights_keep_their_distribution(workshop: Workshop) -> None:
    graph = onnx.load(workshop.models / "cnn" / "1" / "model.onnx")
    mixed = explanations.randomised(graph, ["head.weight"])
    for before, after in zip(graph.graph.initializer, mixed.graph.initializer, strict=True):
        a, b = numpy_helper.to_array(before), numpy_helper.to_array(after)
        assert np.array_equal(np.sort(a.ravel()), np.sort(b.ravel()))
        assert np.array_equal(a, b) == (before.name != "head.weight")


def test_explain_measures_and_draws(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--models-dir", str(workshop.models), "--data-dir", str(workshop.data_dir)]
    few = ["--digits", "2", "--randomised-digits", "1", "--output-dir", str(tmp_path)]
    assert main(["explain", "cnn", *options, *few]) == 0
    report = json.loads((tmp_path / explanations.JSON_FILE).read_text())
    assert (report["model"], report["on"], report["digits"]) == ("cnn/1", "validation", 2)
    assert len(report["sanity"]) == 8
    assert (tmp_path / explanations.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert explanations.quality_table(report) in capsys.readouterr().out


def test_the_page_has_the_tables_of_the_committed_figures() -> None:
    report = json.loads((DOCS / "explanations" / explanations.JSON_FILE).read_text())
    page = (DOCS / "explanations.md").read_text()
    manifest = json.loads((DOCS.parent / "models" / "cnn" / "1" / "manifest.json").read_text())
    assert report["model"] == f"{manifest['name']}/{manifest['version']}"
    assert (report["on"], report["digits"]) == ("test", 500)
    for table in (explanations.quality_table, explanations.agreement_table, explanations.sanity_table):
        assert table(report) in page


def test_a_gradient_is_published_and_evaluated(workshop: Workshop, tmp_path: Path) -> None:
    models = Path(shutil.copytree(workshop.models / "cnn", tmp_path / "models" / "cnn")).parent
    options = ["--models-dir", str(models), "--data-dir", str(workshop.data_dir)]
    assert main(["gradient", "cnn", *options]) == 0
    manifest = read_manifest(models / "cnn-gradient" / "1")
    assert (manifest.task, manifest.metrics["source"]) == ("gradient", "cnn/1")
    assert manifest.labels == read_manifest(models / "cnn" / "1").labels
    assert main(["evaluate", "cnn-gradient", *options]) == 0
    assert main(["gradient", "cnn", *options]) == 2  # it is there already
    assert main(["gradient", "cnn", "--version", "7", *options]) == 2
