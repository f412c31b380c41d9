import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as divergence

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, TensorSpec
from tests.support.idx_files import write_folder
from tests.support.models import IMAGES, LABEL, make_model, z_spec
from tests.support.tiny_runs import Workshop
from training.data.splits import Dataset, load
from training.evaluation.evaluate import (
    EvaluationError,
    bound,
    brier_score,
    calibration_error,
    differences,
    draw,
    encoder_of,
    encoding,
    evaluate,
    kl_divergence,
    latest_judge,
    log_likelihood,
    negative_log_likelihood,
    spread,
    worst_recall,
)

# Three answers of a classifier of two classes: right, wrong, right.
PROBABILITIES = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], np.float32)
TRUTH = np.array([0, 1, 1])


def test_negative_log_likelihood_by_hand() -> None:
    expected = -(math.log(0.8) + math.log(0.4) + math.log(0.9)) / 3
    # float32 probabilities
    assert negative_log_likelihood(PROBABILITIES, TRUTH) == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(negative_log_likelihood(np.array([[1.0, 0.0]], np.float32), np.array([1])))


def test_brier_score_by_hand() -> None:
    expected = (2 * 0.2**2 + 2 * 0.6**2 + 2 * 0.1**2) / 3
    assert brier_score(PROBABILITIES, TRUTH) == pytest.approx(expected, rel=1e-6)


def test_calibration_error_by_hand() -> None:
    """Confidences 0.8, 0.6 and 0.9 lie in bins of their own; only the middle one is wrong."""
    expected = (0.2 + 0.6 + 0.1) / 3
    assert calibration_error(PROBABILITIES, TRUTH) == pytest.approx(expected, rel=1e-6)
    always_half = np.full((4, 2), 0.5, np.float32)
    assert calibration_error(always_half, np.array([0, 0, 1, 1])) == pytest.approx(0.0, abs=1e-7)


def test_worst_recall_by_hand() -> None:
    assert worst_recall(PROBABILITIES, TRUTH) == 0.5


def test_likelihood_and_divergence_are_those_of_torch_distributions() -> None:
    logits, images = torch.randn(3, 28, 28) * 20, torch.rand(3, 28, 28) < 0.5
    expected = Bernoulli(logits=logits.double()).log_prob(images.double()).sum((1, 2))
    # float32 terms of up to 60 nats
    np.testing.assert_allclose(log_likelihood(logits.numpy(), images.numpy()), expected, rtol=1e-6)
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    expected = divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    np.testing.assert_allclose(kl_divergence(mean.numpy(), log_variance.numpy()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (7, 3, [0, 2, 4]), (4, 4, [0, 1, 2, 3])],
)
def test_rows_are_spread_evenly(rows: int, count: int, expected: list[int]) -> None:
    assert spread(rows, count).tolist() == expected


def write_pair(models_dir: Path, mean: float, log_variance: float, logit: float) -> Path:
    """A VAE whose encoder sees nothing and whose decoder says the same of every z; the decoder's path."""

    def constant(name: str, value: float) -> Any:
        return numpy_helper.from_array(np.array(value, np.float32), name)

    decoder, encoder = models_dir / "vae" / "1" / MODEL_FILE, models_dir / "vae-encoder" / "1" / MODEL_FILE
    for path in (decoder, encoder):
        path.parent.mkdir(parents=True)
    size = numpy_helper.from_array(np.array([1, 28, 28], np.int64), "size")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("ReduceSum", ["z", "axes"], ["sum"]),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "axes"], ["column"]),
        helper.make_node("Add", ["column", "logit"], ["one"]),
        helper.make_node("Tile", ["one", "size"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["images"], to=TensorProto.UINT8),
    ]
    constants = [axes, size, constant("zero", 0.0), constant("logit", logit)]
    save(make_model(nodes, constants, (z_spec(), LABEL), (IMAGES,)), decoder)
    specs = [TensorSpec(name=name, datatype="FP32", shape=(-1, 6)) for name in ("mean", "log_variance")]
    six = numpy_helper.from_array(np.array([1, 6], np.int64), "six")
    nodes = [
        helper.make_node("Cast", ["label"], ["label_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["label_float", "axes"], ["column"]),
        helper.make_node("Mul", ["column", "zero"], ["nothing"]),
        helper.make_node("Tile", ["nothing", "six"], ["wide"]),
        helper.make_node("Add", ["wide", "m"], ["mean"]),
        helper.make_node("Add", ["wide", "v"], ["log_variance"]),
    ]
    constants = [axes, six, constant("zero", 0.0), constant("m", mean), constant("v", log_variance)]
    save(make_model(nodes, constants, (IMAGES, LABEL), (specs[0], specs[1])), encoder)
    return decoder


def grey(rows: int, level: int) -> Dataset:
    return Dataset(np.full((rows, 28, 28), level, np.uint8), np.arange(rows) % 10)


def test_bound_of_a_posterior_that_is_the_prior_is_the_likelihood(tmp_path: Path) -> None:
    """p(x | z) = sigmoid(2) for each white pixel whatever z is, so log p(x) is known."""
    metrics = bound(write_pair(tmp_path, 0.0, 0.0, 2.0), grey(20, 255))
    expected = 784 * -math.log1p(math.exp(-2.0))
    for name in ("test_elbo", "test_reconstruction", "test_iwae_10"):
        assert metrics[name] == pytest.approx(expected, rel=1e-6)  # float32 terms
    assert metrics["test_kl"] == 0.0


def test_importance_weights_win_back_what_a_poor_posterior_loses(tmp_path: Path) -> None:
    """log p(x) is -784 ln 2; the ELBO lacks KL(N(0.5, 1) || N(0, 1)) in each of six units: 0.75."""
    metrics = bound(write_pair(tmp_path, 0.5, 0.0, 0.0), grey(2000, 128))
    evidence = -784 * math.log(2)
    assert metrics["test_elbo"] == pytest.approx(evidence - 0.75, rel=1e-6)
    assert float(metrics["test_elbo"]) < float(metrics["test_iwae_10"]) < evidence
    # The logarithm of a weight is the sum of six terms -0.5 noise - 0.125: N(-0.75, 1.5).
    weights = np.random.default_rng(0).normal(-0.75, math.sqrt(1.5), (10, 100_000))
    lost = float((np.logaddexp.reduce(weights) - math.log(10)).mean())
    # Six standard errors of 2,000 images, each with a deviation of 0.5.
    assert float(metrics["test_iwae_10"]) == pytest.approx(evidence + lost, abs=0.07)


def test_pixels_of_the_bound_are_drawn_with_their_levels(tmp_path: Path) -> None:
    """With logit l the mean log-likelihood is 784 (p l - ln(1 + e^l)): linear in the share p of ink."""
    metrics = bound(write_pair(tmp_path, 0.0, 0.0, 3.0), grey(50, 51))
    share = (float(metrics["test_reconstruction"]) / 784 + math.log1p(math.exp(3.0))) / 3.0
    assert share == pytest.approx(0.2, abs=0.012)  # six standard errors of 39,200 pixels


def test_encoder_that_sees_nothing_has_no_active_unit(tmp_path: Path) -> None:
    metrics = encoding(encoder_of(write_pair(tmp_path, 0.5, 0.0, 0.0)), grey(20, 128))
    assert metrics == {"test_images": 20, "test_kl": 0.75, "test_active_units": 0}


def test_bound_without_the_encoder_says_so(tmp_path: Path) -> None:
    decoder = write_pair(tmp_path, 0.0, 0.0, 0.0)
    shutil.rmtree(tmp_path / "vae-encoder")
    with pytest.raises(EvaluationError, match=r"vae-encoder/1/model\.onnx is missing"):
        bound(decoder, grey(20, 255))


def test_samples_are_the_same_each_time_and_of_the_labels(workshop: Workshop) -> None:
    path = workshop.models / "gan" / "1" / MODEL_FILE
    labels = np.arange(30) % 10
    assert np.array_equal(draw(path, labels), draw(path, labels))
    assert not np.array_equal(draw(path, labels), draw(path, (labels + 1) % 10))


def test_differences_name_what_is_beyond_the_tolerance() -> None:
    recorded = {"errors": 30, "accuracy": 0.99, "elbo": -80.0, "judge": "cnn/1", "gone": 1.0}
    near = {"errors": 31, "accuracy": 0.99005, "elbo": -80.005, "judge": "cnn/1"}
    assert differences(recorded, near) == {"gone"}
    far = {"errors": 32, "accuracy": 0.9897, "elbo": -80.1, "judge": "cnn/2", "gone": 1.0, "new": 1}
    assert differences(recorded, far) == {"errors", "accuracy", "elbo", "judge", "new"}


@pytest.fixture
def models(tmp_path: Path, workshop: Workshop) -> Path:
    """A copy of the workshop's models, to be changed."""
    return Path(shutil.copytree(workshop.models, tmp_path / "models"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    edit(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def test_untouched_models_of_every_task_agree(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([], workshop.models, workshop.splits)
    said = capsys.readouterr().out
    assert "DIFFERS" not in said
    for model in ("cnn/1", "gan/1", "vae/1", "vae-encoder/1"):
        metrics = json.loads((workshop.models / model / MANIFEST_FILE).read_text())["metrics"]
        seen = {line.split()[1] for line in said.splitlines() if line.startswith(f"{model} ")}
        assert seen == metrics.keys() - {"data", "data_digest"}


@pytest.mark.parametrize(
    ("model", "metric"),
    [("cnn", "test_nll"), ("gan", "frechet_distance"), ("vae", "test_elbo"), ("vae-encoder", "test_kl")],
)
def test_manifest_that_is_off_is_found(
    workshop: Workshop, models: Path, model: str, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(models / model / "1", lambda content: content["metrics"].update({metric: 0.123}))
    assert not evaluate([model], models, workshop.splits)
    wrong = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.endswith("DIFFERS")]
    assert wrong == [metric]


def test_graph_with_another_sha256_is_refused(workshop: Workshop, models: Path) -> None:
    with (models / "gan" / "1" / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EvaluationError, match=r"SHA-256 is .*, expected .* \(manifest\.json\)"):
        evaluate(["gan"], models, workshop.splits)


def test_other_data_is_refused(tmp_path: Path, workshop: Workshop) -> None:
    other = load(write_folder(tmp_path, train=130))
    with pytest.raises(EvaluationError, match=r"was measured on unknown, digest .* but the data given"):
        evaluate(["gan"], workshop.models, other)
    with pytest.raises(EvaluationError, match="holds no version trained on unknown"):
        latest_judge(workshop.models, other)


def test_generator_is_judged_by_the_version_that_judged_it_first(workshop: Workshop, models: Path) -> None:
    shutil.copytree(models / "cnn" / "1", models / "cnn" / "2")
    change(models / "cnn" / "2", lambda content: content.update(version=2))
    assert latest_judge(models, workshop.splits).identity["classifier"] == "cnn/2"
    assert evaluate(["gan"], models, workshop.splits)
    shutil.rmtree(models / "cnn" / "1")
    with pytest.raises(EvaluationError, match=r"cnn/1, which judged .*gan/1, is missing"):
        evaluate(["gan"], models, workshop.splits)


def test_nothing_to_evaluate_is_an_error(tmp_path: Path, workshop: Workshop) -> None:
    with pytest.raises(EvaluationError, match="holds no model"):
        evaluate([], tmp_path, workshop.splits)
    with pytest.raises(EvaluationError, match=r"nothing holds no version with a manifest\.json"):
        evaluate(["nothing"], workshop.models, workshop.splits)
