"""The command `convert`: a float16 version is what its source is, and is refused if it is not."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from service.models.manifest import MODEL_FILE, TensorSpec, read_manifest, sha256_of
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from tests.support.tiny_classifiers import hidden_layer_classifier
from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.confidence.graph import with_score
from training.confidence.score import Score
from training.datasets.splits import Splits
from training.evaluation.abstention import scores
from training.evaluation.classification import readings
from training.onnx_files import open_session
from training.quantization.fp16 import rounded, to_fp16

LARGEST_FLOAT16 = 65_504


def run(command: str, models: Path, data_dir: Path, *more: str) -> int:
    return main([command, *more, "--models-dir", str(models), "--data-dir", str(data_dir)])


def convert(models: Path, data_dir: Path, name: str = "mlp", *more: str) -> int:
    return run("convert", models, data_dir, name, "--to", "fp16", *more)


def check_published(models: Path, data_dir: Path, name: str, version: int) -> None:
    """Convert a model and check what is published."""
    assert convert(models, data_dir, name) == 0
    source, folder = models / name / str(version), models / f"{name}-fp16" / str(version)
    before, manifest = read_manifest(source), read_manifest(folder)
    assert (manifest.inputs, manifest.outputs) == (before.inputs, before.outputs)
    assert (manifest.task, manifest.labels) == (before.task, before.labels)
    assert manifest.metrics["source"] == f"{name}/{version}"
    assert manifest.metrics["source_sha256"] == before.sha256
    assert manifest.command.startswith(f"{before.command} && python -m training")
    assert (folder / MODEL_FILE).stat().st_size < 0.75 * (source / MODEL_FILE).stat().st_size
    card = (folder / "README.md").read_text()
    assert "- fp16\n" in card
    assert "has not run on a GPU yet" in " ".join(card.split())
    assert run("evaluate", models, data_dir, f"{name}-fp16") == 0
    Engine(folder / MODEL_FILE, manifest, EngineOptions("cpu", 0, 1, (1, 8))).warm_up()


@pytest.mark.slow
def test_float16_classifier_is_published_evaluated_and_served(models: Path, data_dir: Path) -> None:
    check_published(models, data_dir, "mlp", 2)


def test_float16_generator_is_published_evaluated_and_served(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("gan", "cnn"):  # the cnn judges
        shutil.copytree(workshop.models / name, tmp_path / "models" / name)
    shutil.copytree(workshop.models / "judge", tmp_path / "models" / "judge")
    check_published(tmp_path / "models", workshop.data_dir, "gan", 1)


def test_weights_are_float16_and_the_score_stays_float32(splits: Splits) -> None:
    """The tiny classifier's features have 16 numbers below 1; its score adds squares beyond float16."""
    graph = with_score(hidden_layer_classifier(splits), large_score(5e5))
    made = to_fp16(graph)
    types = {each.name: each.data_type for each in made.graph.initializer}
    assert {types[name] for name in ("w1", "b1", "w2", "b2")} == {TensorProto.FLOAT16}
    assert {types[name] for name in ("ood_weights", "ood_offset")} == {TensorProto.FLOAT}
    ends = [[(each.name, each.type) for each in (*g.graph.input, *g.graph.output)] for g in (graph, made)]
    assert ends[0] == ends[1]
    assert {node.name for node in made.graph.node} >= {node.name for node in graph.graph.node}

    images = splits.test.images
    expected = scores(graph, images)
    assert np.abs(expected).max() > LARGEST_FLOAT16
    for each in (made, rounded(made)):
        np.testing.assert_allclose(scores(each, images), expected, rtol=0.01)


def test_rounding_repeats_what_float16_loses(splits: Splits) -> None:
    """A layer whose sums pass float16's largest number: the CPU computes on, a GPU overflows."""
    graph = hidden_layer_classifier(splits)
    (weights,) = (each for each in graph.graph.initializer if each.name == "w1")
    wide = onnx.numpy_helper.to_array(weights) * np.float32(5e4)
    weights.CopyFrom(onnx.numpy_helper.from_array(wide, "w1"))
    made = to_fp16(graph)
    images = {"images": splits.test.images}
    hidden, lost = (open_session(each, ["sums"]).run(["sums"], images)[0] for each in (graph, rounded(made)))
    assert np.isfinite(hidden).all()
    assert (np.isinf(lost) == (np.abs(hidden) > LARGEST_FLOAT16 + 16)).all()
    assert np.isinf(lost).any()
    assert np.isfinite(readings(made, splits.test).probabilities).all()


def test_version_that_loses_too_much_is_not_published(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(models, data_dir, "mlp", "--allow-loss", "-1") == 2
    assert "fp16 loses 0.00 percentage points of accuracy in a CPU's arithmetic" in capsys.readouterr().err
    assert not list(models.glob("mlp-fp16/*"))


def test_generator_that_changes_too_much_is_not_published(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(workshop.models / "gan", tmp_path / "models" / "gan")
    monkeypatch.setattr("training.quantization.convert.ALLOWED_LEVELS", -1)
    assert convert(tmp_path / "models", workshop.data_dir, "gan") == 2
    assert "grey levels in a CPU's arithmetic, expected at most -1" in capsys.readouterr().err


@pytest.mark.slow
def test_score_that_differs_too_much_is_not_published(
    models: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = models / "mlp" / "2"
    onnx.save(with_score(onnx.load(folder / MODEL_FILE), large_score(5e5)), folder / MODEL_FILE)
    manifest = read_manifest(folder)
    changes = {
        "outputs": (*manifest.outputs, TensorSpec(name="ood_score", datatype="FP32", shape=(-1,))),
        "abstain_above": 1.0,
        "sha256": sha256_of(folder / MODEL_FILE),
    }
    (folder / "manifest.json").write_text(manifest.model_copy(update=changes).model_dump_json())
    assert convert(models, data_dir) == 0
    card = " ".join((models / "mlp-fp16" / "2" / "README.md").read_text().split())
    assert "The advice to abstain differs for 0 of 60 test images." in card
    monkeypatch.setattr("training.quantization.convert.SCORE_TOLERANCE", -1)
    assert convert(models, data_dir, "mlp", "--force") == 2
    assert "% in a GPU's arithmetic, expected at most -100 %" in capsys.readouterr().err


def large_score(offset: float) -> Score:
    """A score of 16 features: the offset less a sum of squares of up to a million."""
    directions = np.random.default_rng(0).normal(0, 500, (16, 4)).astype(np.float32)
    return Score(directions, np.zeros((16, 10), np.float32), np.full(10, offset, np.float32))


def test_unknown_model_is_refused(
    published: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(published, data_dir, "other") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("other holds no version with a manifest.json")


def test_encoder_is_refused(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(workshop.models, workshop.data_dir, "vae-encoder") == 2
    expected = "error: vae-encoder/1 is a model for encoding, expected classification or generation"
    assert capsys.readouterr().err.splitlines()[-1] == expected


@pytest.mark.slow
def test_model_on_fewer_bits_is_not_converted_again(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(models, data_dir) == 0
    assert convert(models, data_dir) == 2
    assert "2 exists" in capsys.readouterr().err
    assert convert(models, data_dir, "mlp", "--force") == 0
    assert convert(models, data_dir, "mlp-fp16") == 2
    assert "computes in float16 already" in capsys.readouterr().err
    assert run("quantize", models, data_dir, "mlp-fp16", "--calibration-images", "40") == 2
    assert "computes in float16 already" in capsys.readouterr().err
