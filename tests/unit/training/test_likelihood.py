import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from service.models.manifest import MODEL_FILE, TensorSpec
from tests.support.models import IMAGES, LABEL, make_model, z_spec
from training.datasets.splits import Dataset
from training.errors import EvaluationError
from training.evaluation.likelihood import bound, encoder_of, encoding


def write_pair(models_dir: Path, mean: float, log_variance: float, logit: float) -> Path:
    """A VAE whose encoder sees nothing and whose decoder ignores z; returns the decoder's path."""

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


def test_bound_is_the_likelihood_if_the_posterior_is_the_prior(tmp_path: Path) -> None:
    """p(x | z) = sigmoid(2) for each white pixel whatever z is, so log p(x) is known."""
    metrics = bound(write_pair(tmp_path, 0.0, 0.0, 2.0), grey(20, 255))
    expected = 784 * -math.log1p(math.exp(-2.0))
    for name in ("test_elbo", "test_reconstruction", "test_iwae_10"):
        assert metrics[name] == pytest.approx(expected, rel=1e-6)  # float32 terms
    assert metrics["test_kl"] == 0.0


def test_importance_weights_make_up_for_a_poor_posterior(tmp_path: Path) -> None:
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


def test_pixels_of_the_bound_are_drawn_by_their_levels(tmp_path: Path) -> None:
    """With logit l the mean log-likelihood is 784 (p l - ln(1 + e^l)): linear in the fraction p of ink."""
    metrics = bound(write_pair(tmp_path, 0.0, 0.0, 3.0), grey(50, 51))
    share = (float(metrics["test_reconstruction"]) / 784 + math.log1p(math.exp(3.0))) / 3.0
    assert share == pytest.approx(0.2, abs=0.012)  # six standard errors of 39,200 pixels


def test_encoder_that_sees_nothing_has_no_active_unit(tmp_path: Path) -> None:
    metrics = encoding(encoder_of(write_pair(tmp_path, 0.5, 0.0, 0.0)), grey(20, 128))
    assert metrics == {"test_images": 20, "test_kl": 0.75, "test_active_units": 0}


def test_bound_without_the_encoder_is_an_error(tmp_path: Path) -> None:
    decoder = write_pair(tmp_path, 0.0, 0.0, 0.0)
    shutil.rmtree(tmp_path / "vae-encoder")
    with pytest.raises(EvaluationError, match=r"vae-encoder/1/model\.onnx is missing"):
        bound(decoder, grey(20, 255))
