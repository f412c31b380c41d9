"""Several published classifiers as one graph."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.models.manifest import Manifest, read_manifest, sha256_of
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.ensembles.combine import mean_of
from training.errors import EnsembleError
from training.evaluation.classification import readings


@pytest.fixture
def models(tmp_path: Path, workshop: Workshop) -> Path:
    """A models folder with cnn/1 and cnn/2, which differ."""
    models = tmp_path / "models"
    shutil.copytree(workshop.models / "cnn", models / "cnn")
    second = shutil.copytree(models / "cnn" / "1", models / "cnn" / "2")
    graph = onnx.load(second / "model.onnx")
    bias = next(each for each in graph.graph.initializer if list(each.dims) == [10])
    bias.raw_data = np.linspace(-2, 2, 10, dtype=np.float32).tobytes()
    onnx.save(graph, second / "model.onnx")
    describe(second)
    return models


def describe(folder: Path, labels: tuple[str, ...] | None = None) -> None:
    """Make the manifest name its folder and the graph in it."""
    path = folder / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_text())
    changed = manifest.model_copy(
        update={
            "name": folder.parent.name,
            "version": int(folder.name),
            "labels": labels or manifest.labels,
            "sha256": sha256_of(folder / "model.onnx"),
        }
    )
    path.write_text(changed.model_dump_json())


def combine(models: Path, workshop: Workshop, *members: str) -> int:
    folders = [str(models / member) for member in members]
    options = ["--models-dir", str(models), "--data-dir", str(workshop.data_dir)]
    return main(["ensemble", "both", *folders, *options])


def test_the_ensemble_gives_the_mean_and_is_served(models: Path, workshop: Workshop) -> None:
    assert combine(models, workshop, "cnn/1", "cnn/2") == 0
    folder, test = models / "both" / "1", workshop.splits.test
    one, two, both = (
        readings(each / "model.onnx", test).probabilities
        for each in (models / "cnn" / "1", models / "cnn" / "2", folder)
    )
    assert np.abs(one - two).max() > 0.05
    np.testing.assert_allclose(both, (one + two) / 2, atol=1e-6)
    assert "Mean" not in {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    manifest = read_manifest(folder)
    assert manifest.preprocess == "resize"
    assert main(["evaluate", "both", "--models-dir", str(models), "--data-dir", str(workshop.data_dir)]) == 0
    engine = Engine(folder / "model.onnx", manifest, EngineOptions("cpu", 0, 1, (1, 8)))
    (served,) = engine.run([(test.images[:5],)], 5)
    np.testing.assert_allclose(served, both[:5], atol=1e-5)


def test_the_card_compares_the_ensemble_with_each_member(models: Path, workshop: Workshop) -> None:
    assert combine(models, workshop, "cnn/1", "cnn/2") == 0
    card = (models / "both" / "1" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| 1: cnn", "| 2: cnn"))]
    assert len(rows) == 2
    assert "/both/1" not in card


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["cnn/1"], "1 member given, expected 2 or more"),
        (["cnn/1", "nosuch/1"], "nosuch"),
        (["cnn/1", "labelled/1"], "labels are"),
        (["cnn/1", "changed/1"], "SHA-256"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_published(
    members: list[str], message: str, models: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = shutil.copytree(models / "cnn" / "1", models / "labelled" / "1")
    describe(labelled, labels=tuple("abcdefghij"))
    changed = shutil.copytree(models / "cnn" / "1", models / "changed" / "1")
    describe(changed)
    (changed / "model.onnx").write_bytes((models / "cnn" / "2" / "model.onnx").read_bytes())
    assert combine(models, workshop, *members) == 2
    assert message in capsys.readouterr().err
    assert not (models / "both").exists()


def test_graphs_of_other_operator_sets_are_refused(models: Path) -> None:
    graphs = [onnx.load(models / "cnn" / "1" / "model.onnx") for _ in range(2)]
    graphs[1].opset_import[0].version -= 1
    with pytest.raises(EnsembleError, match="operator sets"):
        mean_of(graphs)
