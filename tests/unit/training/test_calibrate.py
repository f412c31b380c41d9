"""The command `calibrate`: temperature scaling as a node of the graph, and what stays as it was."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.models.manifest import MODEL_FILE, read_manifest, sha256_of
from tests.support.idx_files import idx, write_folder
from tests.support.tiny_classifiers import hidden_layer_classifier
from tests.support.tiny_published import publish_tiny
from training.__main__ import main
from training.cards.front_matter import front_matter
from training.confidence.graph import features_of, with_score
from training.confidence.score import fit
from training.datasets.idx import read_idx
from training.datasets.known import TEST_LABELS, TRAIN_LABELS
from training.datasets.splits import Splits, load
from training.errors import ConfidenceError
from training.evaluation.classification import readings
from training.evaluation.temperature import best_temperature, tempered
from training.gradients.backward import gradient_graph
from training.onnx_files import open_session, save_graph
from training.temperature_scaling import temperature_of, with_temperature, without_temperature


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tenth label is wrong: otherwise no temperature would be low enough."""
    folder = write_folder(tmp_path_factory.mktemp("data"), train=1200, test=600)
    for name in (TRAIN_LABELS, TEST_LABELS):
        labels = read_idx((folder / name).read_bytes(), 1, name).copy()
        labels[::10] = np.random.default_rng(0).integers(0, 10, len(labels[::10]))
        (folder / name).write_bytes(idx(labels))
    return folder


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> Splits:
    return load(data_dir)


@pytest.fixture
def models(tmp_path: Path, splits: Splits) -> Path:
    """A models folder with mlp/2, whose logits are four times as large as suits the validation images."""
    folder = publish_tiny(tmp_path / "models", splits)
    graph = onnx.load(folder / MODEL_FILE)
    logits = with_temperature(
        graph,
        best_temperature(readings(graph, splits.validation).probabilities, splits.validation.labels) / 4,
    )
    _replace(folder, without_node(logits))
    return tmp_path / "models"


def without_node(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its temperature folded into the last layer, where `calibrate` does not look for it."""
    temperature = temperature_of(graph)
    plain = without_temperature(graph)
    for each in plain.graph.initializer:
        if each.name in ("w2", "b2"):
            each.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(each) / np.float32(temperature), each.name)
            )
    return plain


def _replace(folder: Path, graph: onnx.ModelProto) -> None:
    save_graph(graph, folder / MODEL_FILE)
    manifest = read_manifest(folder)
    made = manifest.model_copy(update={"sha256": sha256_of(folder / MODEL_FILE)})
    (folder / "manifest.json").write_text(made.model_dump_json())


def run(models: Path, data_dir: Path, *more: str, name: str = "calibrate") -> int:
    return main([name, "mlp", "--models-dir", str(models), "--data-dir", str(data_dir), *more])


def test_a_classifier_that_is_too_sure_of_itself_gets_its_temperature(
    models: Path, data_dir: Path, splits: Splits
) -> None:
    before = readings(models / "mlp" / "2" / MODEL_FILE, splits.test)
    assert run(models, data_dir, "--force") == 0
    manifest = read_manifest(models / "mlp" / "2")
    after = readings(models / "mlp" / "2" / MODEL_FILE, splits.test)
    temperature = float(manifest.metrics["temperature"])
    assert temperature == pytest.approx(4, rel=0.01)
    np.testing.assert_allclose(after.probabilities, tempered(before.probabilities, temperature), atol=1e-5)
    assert (after.probabilities.argmax(1) == before.probabilities.argmax(1)).all()
    assert float(manifest.metrics["test_nll"]) < float(manifest.metrics["untempered_test_nll"])
    assert manifest.metrics["test_errors"] == int((~before.correct).sum())


def test_evaluate_measures_the_temperature_again(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(models, data_dir, "--force") == 0
    folders = ["--models-dir", str(models), "--data-dir", str(data_dir)]
    assert main(["evaluate", "mlp", *folders]) == 0
    assert "untempered_test_ece" in capsys.readouterr().out


def test_a_second_time_gives_the_same_graph_and_card(
    models: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["training", "calibrate", "mlp", "--force"])
    folder, seen = models / "mlp" / "2", []
    for _ in range(2):
        assert run(models, data_dir, "--force") == 0
        seen.append([(folder / name).read_bytes() for name in (MODEL_FILE, "README.md", "manifest.json")])
    assert seen[0] == seen[1]
    page, manifest = (folder / "README.md").read_text(), read_manifest(folder)
    assert page.startswith(front_matter(manifest))
    assert page.count("## Temperature") == 1
    assert page.count("| test | without |") == 1
    assert manifest.command == "python -m training export mlp && python -m training calibrate mlp --force"


def test_the_other_outputs_stay(splits: Splits) -> None:
    graph = hidden_layer_classifier(splits)
    name = features_of(graph)
    features = open_session(graph, [name]).run([name], {"images": splits.train.images})[0]
    scored = with_score(graph, fit(features, splits.train.labels, 6))
    inputs = {"images": splits.test.images}
    before, after = (
        open_session(each).run(["ood_score"], inputs)[0] for each in (scored, with_temperature(scored, 3.0))
    )
    assert (before == after).all()
    again = with_score(with_temperature(scored, 3.0), fit(features, splits.train.labels, 6))
    assert temperature_of(again) == 3.0


@pytest.mark.slow
def test_what_is_made_from_a_tempered_graph_has_its_temperature(
    models: Path, data_dir: Path, splits: Splits
) -> None:
    assert run(models, data_dir, "--force") == 0
    assert run(models, data_dir, "--calibration-images", "40", "--allow-loss", "10", name="quantize") == 0
    made, whole = (onnx.load(models / name / "2" / MODEL_FILE) for name in ("mlp-int8", "mlp"))
    assert temperature_of(made) == temperature_of(whole)
    images = splits.test.images[:3].astype(np.float32)
    labels = np.zeros(3, np.int64)
    (gradient,) = open_session(gradient_graph(whole)).run(None, {"images": images, "label": labels})
    step = gradient / np.abs(gradient).max()
    moved = [readings_of(whole, images + sign * step) for sign in (0.01, -0.01)]
    assert moved[0] - moved[1] == pytest.approx(0.02 * (gradient * step).sum((1, 2)), rel=0.05, abs=1e-5)


def readings_of(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The probabilities of label 0 of images in floats, which the graph's input has no room for."""
    floats = onnx.ModelProto()
    floats.CopyFrom(graph)
    floats.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    probabilities: np.ndarray = open_session(floats).run(["probabilities"], {"images": images})[0][:, 0]
    return probabilities


def test_version_is_replaced_only_if_asked(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(models, data_dir) == 2
    assert "--force replaces it with the same weights and a temperature" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["temperature", "tempered_logits"])
def test_a_temperature_of_the_models_own_is_left_alone(name: str, splits: Splits) -> None:
    """A network may scale its logits itself, by a parameter and a node of any name."""
    graph = hidden_layer_classifier(splits)
    softmax = graph.graph.node[-1]
    graph.graph.node.insert(-1, onnx.helper.make_node("Div", [softmax.input[0], name], ["own"], name))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), name))
    softmax = graph.graph.node[-1]
    softmax.input[0] = "own"
    onnx.checker.check_model(graph, full_check=True)
    before = readings(graph, splits.test).probabilities
    assert temperature_of(graph) is None
    made = with_temperature(graph, 3.0)
    np.testing.assert_allclose(readings(made, splits.test).probabilities, tempered(before, 3.0), atol=1e-5)
    plain = without_temperature(made)
    assert (readings(plain, splits.test).probabilities == before).all()
    assert temperature_of(plain) is None


def test_probabilities_that_no_softmax_makes_are_refused(splits: Splits) -> None:
    graph = hidden_layer_classifier(splits)
    graph.graph.node[-1].op_type = "Identity"
    with pytest.raises(ConfidenceError, match="probabilities is made by Identity, expected Softmax"):
        with_temperature(graph, 2.0)


def test_a_graph_that_computes_something_else_is_not_published(
    models: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (models / "mlp" / "2").iterdir()}
    wrong = "training.confidence.calibrate.with_temperature"
    monkeypatch.setattr(wrong, lambda graph, temperature: with_temperature(graph, temperature + 1))
    assert run(models, data_dir, "--force") == 2
    assert "from the formula, expected at most 1e-05" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (models / "mlp" / "2").iterdir()} == before
