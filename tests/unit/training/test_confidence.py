"""The command `confidence`: the score in the graph, its threshold, and what stays as it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from tests.support.idx_files import idx, patterns, write_folder
from tests.support.tiny_classifiers import hidden_layer_classifier
from tests.support.tiny_published import publish_tiny
from training.__main__ import main
from training.cards.front_matter import front_matter
from training.confidence import outliers as outlier_images
from training.confidence.confidence import confidence
from training.confidence.graph import features_of, with_score
from training.confidence.score import EPSILON, SMALLEST, fit
from training.datasets.known import TEST_IMAGES, TRAIN_IMAGES
from training.datasets.splits import Dataset, Splits, load
from training.errors import ConfidenceError
from training.evaluation.abstention import auroc, scores
from training.evaluation.evaluate import evaluate
from training.onnx_files import open_session
from training.reports.outliers import risks

TERMS = 2.0
"""The score of the tiny classifier is a difference of terms of up to 1e6, and lengths miss 1 by 1e-6."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), train=1200)


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> Splits:
    return load(data_dir)


@pytest.fixture(scope="module")
def strange_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes' bars in each image, instead of one's."""
    folder = write_folder(tmp_path_factory.mktemp("strange"), train=1200, seed=5)
    for name, count in ((TRAIN_IMAGES, 1200), (TEST_IMAGES, 60)):
        images, _ = patterns(count, 7)
        (folder / name).write_bytes(idx(np.maximum(images, np.roll(images, 3, axis=0))))
    return folder


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory, splits: Splits, data_dir: Path, strange_dir: Path
) -> Path:
    """A models folder with mlp/2 and its score, which no test may change."""
    models = tmp_path_factory.mktemp("models")
    publish_tiny(models, splits)
    shutil.copytree(models / "mlp" / "2", models.parent / f"{models.name}-before" / "mlp" / "2")
    assert run(models, data_dir, strange_dir, "--force") == 0
    return models


def run(models: Path, data_dir: Path, strange_dir: Path, *more: str) -> int:
    folders = ["--models-dir", str(models), "--data-dir", str(data_dir), "--outliers-dir", str(strange_dir)]
    return main(["confidence", "mlp", *folders, *more])


@pytest.fixture(autouse=True)
def _few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlier_images, "DRAWN", 20)


@pytest.mark.slow
def test_published_graph_has_a_score_and_the_same_probabilities(published: Path, splits: Splits) -> None:
    folder, before = published / "mlp" / "2", published.parent / f"{published.name}-before" / "mlp" / "2"
    manifest = read_manifest(folder)
    inputs = {"images": splits.test.images}
    old = open_session(before / MODEL_FILE).run(["probabilities"], inputs)[0]
    new, score = open_session(folder / MODEL_FILE).run(["probabilities", "ood_score"], inputs)
    assert np.abs(old - new).max() <= 1e-6
    assert score.shape == (60,)
    assert manifest.abstain_above is not None
    assert manifest.metrics["abstained_digits"] == round(float((score > manifest.abstain_above).mean()), 6)
    assert float(manifest.metrics["auroc_fashion"]) > 0.98
    kept = dict(read_manifest(before).metrics)
    assert kept.items() <= manifest.metrics.items()
    assert manifest.command.startswith("python -m training export mlp && python -m training")


@pytest.mark.slow
def test_threshold_lets_a_hundredth_of_the_validation_images_abstain(published: Path, splits: Splits) -> None:
    folder = published / "mlp" / "2"
    limit = read_manifest(folder).abstain_above
    assert limit is not None
    assert 0 <= (scores(folder / MODEL_FILE, splits.validation.images) > limit).mean() <= 0.02


def test_score_is_a_mahalanobis_distance_whose_small_directions_share_a_variance(splits: Splits) -> None:
    session = open_session(hidden_layer_classifier(splits), ["features"])
    features = session.run(["features"], {"images": splits.train.images})[0]
    active = np.linalg.norm(features, axis=1) > 0.1  # others have no direction
    features, labels = features[active], splits.train.labels[active]
    unit = features / (np.linalg.norm(features, axis=1, keepdims=True) + EPSILON)
    names = np.unique(labels)
    means = np.stack([unit[labels == label].mean(0) for label in names])
    apart = unit - means[np.searchsorted(names, labels)]
    variances, vectors = np.linalg.eigh(apart.T @ apart / len(apart))
    variances = np.maximum(variances, SMALLEST)
    shared = np.concatenate([np.full(10, variances[:10].mean()), variances[10:]])
    inverse = (vectors / shared) @ vectors.T
    distances = [np.einsum("nd,de,ne->n", unit - mean, inverse, unit - mean) for mean in means]
    expected = np.min(distances, axis=0)
    assert fit(features, labels, 6).of(features) == pytest.approx(expected, rel=1e-3, abs=TERMS)


def test_graph_computes_the_fitted_score_and_zero_features_too(splits: Splits) -> None:
    graph = hidden_layer_classifier(splits)
    name = features_of(graph)
    features = open_session(graph, [name]).run([name], {"images": splits.train.images})[0]
    score = fit(features, splits.train.labels, 6)
    made = with_score(with_score(graph, score), score)  # the second replaces the first
    assert [each.name for each in made.graph.output] == ["probabilities", "ood_score"]
    seen = open_session(made).run(["ood_score"], {"images": splits.train.images})[0]
    active = np.linalg.norm(features, axis=1) > 0.1
    assert seen[active] == pytest.approx(score.of(features)[active], rel=1e-3, abs=TERMS)
    black = open_session(made).run(["ood_score"], {"images": np.zeros((1, 28, 28), np.uint8)})[0]
    assert np.isfinite(black).all()


@pytest.mark.slow
def test_int8_version_gets_a_score_from_its_levels(
    published: Path, tmp_path: Path, data_dir: Path, splits: Splits
) -> None:
    models = Path(shutil.copytree(published, tmp_path / "models"))
    folders = ["--models-dir", str(models), "--data-dir", str(data_dir)]
    assert main(["quantize", "mlp", "--calibration-images", "40", "--allow-loss", "10", *folders]) == 0
    graph = onnx.load(models / "mlp-int8" / "2" / MODEL_FILE)
    assert not [node.name for node in graph.graph.node if node.name.startswith("ood_")]
    assert read_manifest(models / "mlp-int8" / "2").abstain_above is None
    name = features_of(graph)
    features = open_session(graph, [name]).run([name], {"images": splits.train.images})[0]
    score = fit(features, splits.train.labels, 6)
    made = with_score(graph, score)
    assert "Cast" in [node.op_type for node in made.graph.node if node.name.startswith("ood_")]
    seen = open_session(made).run(["ood_score"], {"images": splits.train.images})[0]
    active = np.linalg.norm(features, axis=1) > 0.1
    assert seen[active] == pytest.approx(score.of(features)[active], rel=1e-3, abs=TERMS)


def test_engine_serves_both_outputs(published: Path, splits: Splits) -> None:
    folder = published / "mlp" / "2"
    engine = Engine(folder / MODEL_FILE, read_manifest(folder), EngineOptions("cpu", 0, 1, (1, 4)))
    engine.warm_up()
    probabilities, score = engine.run([(splits.test.images[:3],)], 3)
    assert (probabilities[:3].shape, score[:3].shape) == ((3, 10), (3,))


def test_evaluate_measures_the_score_again(
    published: Path, splits: Splits, strange_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["mlp"], published, splits, load(strange_dir).test)
    assert "auroc_fashion" in capsys.readouterr().out
    assert evaluate(["mlp"], published, splits)
    assert "auroc_fashion" not in capsys.readouterr().out


def test_card_tells_of_the_score_once(
    published: Path,
    tmp_path: Path,
    data_dir: Path,
    strange_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["training", "confidence", "mlp", "--force"])
    models = Path(shutil.copytree(published, tmp_path / "models"))
    for _ in range(2):
        assert run(models, data_dir, strange_dir, "--force") == 0
    page, manifest = (models / "mlp" / "2" / "README.md").read_text(), read_manifest(models / "mlp" / "2")
    assert page.startswith(front_matter(manifest))
    assert page.count("## Confidence") == 1
    assert page.index("## Confidence") < page.index("## Intended use")
    assert f"`abstain_above` = {manifest.abstain_above:g}" in " ".join(page.split())
    assert manifest.command.count("python -m training confidence mlp --force") == 1


def test_version_is_replaced_only_if_asked(
    published: Path, data_dir: Path, strange_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(published, data_dir, strange_dir) == 2
    assert "--force replaces it" in capsys.readouterr().err


def test_score_that_cannot_tell_outliers_is_not_published(
    published: Path, tmp_path: Path, splits: Splits
) -> None:
    models = Path(shutil.copytree(published, tmp_path / "models"))
    before = (models / "mlp" / "2" / "manifest.json").read_bytes()
    with pytest.raises(ConfidenceError, match=r"AUROC on validation images is 0\.\d+, expected 0\.98"):
        confidence("mlp", splits, splits, models, force=True)
    assert (models / "mlp" / "2" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("inside", "outside", "expected"), [([1, 2], [3], 1), ([1, 3], [2], 0.5), ([1], [1], 0.5)]
)
def test_auroc_is_the_chance_of_the_higher_score(
    inside: list[int], outside: list[int], expected: float
) -> None:
    assert auroc(np.array(inside, np.float32), np.array(outside, np.float32)) == expected


def test_report_measures_each_kind_and_draws_the_risk(
    published: Path, tmp_path: Path, data_dir: Path, strange_dir: Path
) -> None:
    folders = [
        "--models-dir",
        str(published),
        "--data-dir",
        str(data_dir),
        "--outliers-dir",
        str(strange_dir),
    ]
    assert main(["outliers", *folders, "--output-dir", str(tmp_path)]) == 0
    seen = json.loads((tmp_path / "outliers.json").read_text())["mlp"]
    metrics = read_manifest(published / "mlp" / "2").metrics
    assert seen["digits"] == metrics["abstained_digits"]
    assert seen["kinds"]["fashion"]["auroc"] == metrics["auroc_fashion"]
    assert (
        seen["score_risk"][-1] == seen["probability_risk"][-1] == pytest.approx(0.5 + seen["error_rate"] / 2)
    )
    assert (tmp_path / "risk.png").stat().st_size > 1000


def test_risk_is_the_error_rate_of_the_least_doubtful() -> None:
    wrong = np.array([False] * 10 + [True] * 10)
    assert risks(np.arange(20.0), wrong)[9:] == [0, *(round(n / (10 + n), 6) for n in range(1, 11))]


def test_graph_without_a_linear_last_layer_is_refused(splits: Splits) -> None:
    graph = hidden_layer_classifier(splits)
    graph.graph.node[-1].input[0] = "features"
    with pytest.raises(ConfidenceError, match="the softmax reads Relu, expected Gemm or MatMul"):
        features_of(graph)


def test_outliers_are_the_same_for_a_seed_and_leave_out_zeros() -> None:
    images, labels = patterns(40, 1)
    digits = Dataset(images, labels.astype(np.int64))
    first, second, other = (outlier_images.outliers(digits, digits, seed) for seed in (0, 0, 1))
    assert all((first[kind] == second[kind]).all() for kind in first)
    assert (first["letters"] != other["letters"]).any()
    assert all(some.shape[1:] == (28, 28) and some.dtype == np.uint8 for some in first.values())
    assert first["letters"].any(axis=(1, 2)).all()
    assert len(first["rotated"]) == 20
    assert (np.rot90(first["rotated"][0], -1) == images[labels != 0][0]).all()
