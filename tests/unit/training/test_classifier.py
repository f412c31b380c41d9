import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from service.models.manifest import read_manifest
from tests.support.tiny_runs import CNN, Workshop, assert_same_state, new_run
from training.errors import ExportError
from training.families import classifier
from training.onnx_files import open_session
from training.runs.finished import load_weights
from training.versions import Target

MLP = dataclasses.replace(classifier.MLP, epochs=1, batch_size=20)
VIT = dataclasses.replace(classifier.VIT, epochs=4, batch_size=20)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Path:
    """The published folder of a transformer after four tiny epochs; its run lies next to its models."""
    folder = tmp_path_factory.mktemp("vit")
    run = new_run(folder / "run", VIT, origin={"model": "vit", "data_digest": workshop.splits.digest})
    classifier.train(VIT, workshop.splits, run)
    return classifier.export("vit", folder / "run", workshop.splits, Target(folder / "models"))


def fresh(network: str) -> classifier.Classifier:
    config = {"mlp": classifier.MLP, "cnn": classifier.CNN, "vit": classifier.VIT}[network]
    torch.manual_seed(0)
    return classifier.build(config)


def test_features_are_nonnegative_and_probabilities_sum_to_one() -> None:
    serving = classifier.Serving(classifier.build(CNN).eval())
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    probabilities, logits, features = serving(images)
    assert (probabilities.shape, logits.shape, features.shape) == ((5, 10), (5, 10), (5, 128))
    assert features.min() >= 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(probabilities, logits.softmax(1))


def test_validation_gives_accuracy_mean_loss_and_the_recall_of_each_class() -> None:
    linear = nn.Linear(784, 10)
    network = nn.Sequential(nn.Flatten(), linear)
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(torch.arange(10.0) == 3)
    images = torch.zeros(1001, 1, 28, 28, dtype=torch.uint8)  # three parts
    labels = torch.full((1001,), 3)
    labels[0] = 5
    metrics = classifier.validate(network, images, labels)
    normaliser = np.log(np.e + 9)
    # float32 means
    assert metrics.pop("accuracy") == pytest.approx(1000 / 1001, rel=1e-6)
    assert metrics.pop("loss") == pytest.approx((1000 * (normaliser - 1) + normaliser) / 1001, rel=1e-5)
    assert metrics == {"recall_3": 1, "recall_5": 0}


def test_score_prefers_accuracy_and_then_the_smaller_loss() -> None:
    scores = [
        classifier._score({"validation_accuracy": accuracy, "validation_loss": loss})
        for accuracy, loss in ((0.99, 0.03), (0.99, 0.02), (0.80, 0.5))
    ]
    assert scores[1] > scores[0] > scores[2]


def test_mlp_run_repeats_to_the_same_bits(tmp_path: Path, workshop: Workshop) -> None:
    for name in ("first", "second"):
        run = new_run(tmp_path / name, MLP)
        classifier.train(MLP, workshop.splits, run)
    assert_same_state(tmp_path / "first", tmp_path / "second")
    names = {"train_loss", "validation_loss", "validation_accuracy", "learning_rate"}
    names |= {f"validation_recall_{digit}" for digit in range(10)}
    assert names < run.history[-1].keys()


def test_training_lowers_the_loss(workshop: Workshop) -> None:
    metrics = read_manifest(workshop.models / "cnn" / "1").metrics
    assert float(metrics["test_nll"]) < np.log(10)
    assert float(metrics["test_accuracy"]) > 0.2


def test_published_classifier_names_its_tensors(workshop: Workshop) -> None:
    folder = workshop.models / "cnn" / "1"
    manifest = read_manifest(folder)
    assert (manifest.task, manifest.labels) == ("classification", tuple("0123456789"))
    assert manifest.preprocess == "resize"  # the small data is not MNIST
    session = open_session(folder / "model.onnx", ["features", "logits"])
    images = workshop.splits.test.images
    probabilities, features, logits = session.run(["probabilities", "features", "logits"], {"images": images})
    assert (features.shape, logits.shape) == ((60, 128), (60, 10))
    correct = probabilities.argmax(1) == workshop.splits.test.labels
    assert manifest.metrics["test_errors"] == int((~correct).sum())
    assert manifest.metrics["test_accuracy"] == pytest.approx(correct.mean(), abs=1e-6)  # six decimals


def test_training_the_transformer_lowers_the_loss(vit: Path) -> None:
    history = [json.loads(line) for line in (vit / "training.jsonl").read_text().splitlines()]
    assert len(history) == VIT.epochs
    assert history[-1]["train_loss"] < history[0]["train_loss"] < 1.2 * np.log(10)


@pytest.mark.slow
def test_transformer_overfits_a_batch() -> None:
    """The gradient reaches every parameter, and 30 steps fit labels that are pure chance."""
    network = fresh("vit")
    images, labels = torch.rand(10, 1, 28, 28), torch.arange(10)
    optimizer = torch.optim.AdamW(classifier.parameter_groups(network, classifier.VIT), lr=2e-3)
    for _ in range(30):
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert [name for name, w in network.named_parameters() if w.grad is None or not w.grad.any()] == []


def test_published_transformer_gives_its_attention_too(vit: Path, workshop: Workshop) -> None:
    manifest = read_manifest(vit)
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [
        ("probabilities", (-1, 10)),
        ("attention", (-1, 7, 7)),
    ]
    session = open_session(vit / "model.onnx", ["features", "logits"])
    names = ["attention", "features", "logits"]
    images = workshop.splits.test.images
    attention, features, logits = session.run(names, {"images": images})
    assert (attention.shape, features.shape, logits.shape) == ((60, 7, 7), (60, 96), (60, 10))
    np.testing.assert_allclose(attention.sum(axis=(1, 2)), 1, rtol=1e-5)  # float32 sums
    assert attention.min() >= 0
    assert np.ptp(attention, axis=0).max() > 1e-4  # the map depends on the image
    assert "![attention](attention.png)" in (vit / "README.md").read_text()
    with Image.open(vit / "attention.png") as picture:
        assert picture.size == (10 * 28, 2 * 3 * 28)


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_transformer_gives_an_image_the_same_answer_in_every_batch(
    rows: int, vit: Path, workshop: Workshop
) -> None:
    network = classifier.build(VIT)
    load_weights(network, vit.parents[2] / "run")
    images = workshop.splits.test.images[:rows]
    with torch.no_grad():
        expected = classifier.serving(network, VIT)(torch.from_numpy(images.copy()))
    seen = open_session(vit / "model.onnx").run(["probabilities", "attention"], {"images": images})
    for ours, theirs in zip(seen, expected, strict=False):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=classifier.PARITY_TOLERANCE)


def test_weight_decay_spares_the_transformers_vectors() -> None:
    network = fresh("vit")
    decayed, spared = classifier.parameter_groups(network, classifier.VIT)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (classifier.VIT.weight_decay, 0)
    assert {w.ndim for w in spared["params"]} == {1}
    assert min(w.ndim for w in decayed["params"]) == 2
    assert sum(len(group["params"]) for group in (decayed, spared)) == len([*network.parameters()])


@pytest.mark.parametrize("config", [classifier.MLP, classifier.CNN], ids=["mlp", "cnn"])
def test_weight_decay_of_mlp_and_cnn_stays_what_it_was_when_they_were_published(
    config: classifier.Config,
) -> None:
    network = classifier.build(config)
    (group,) = classifier.parameter_groups(network, config)
    assert group["weight_decay"] == config.weight_decay
    assert [*map(id, group["params"])] == [*map(id, network.parameters())]


def test_runs_older_than_a_hyperparameter_can_still_be_exported() -> None:
    recorded = dataclasses.asdict(classifier.CNN)
    del recorded["weight_decay_on"]
    assert classifier.config_of(recorded) == classifier.CNN


@pytest.mark.parametrize(
    ("dataset", "preprocess"),
    [("mnist", "mnist-digit"), ("fashion-mnist", "resize"), ("unknown", "resize")],
)
def test_only_a_model_of_mnist_makes_pictures_into_digits(
    dataset: str, preprocess: str, workshop: Workshop
) -> None:
    splits = dataclasses.replace(workshop.splits, name=dataset)
    assert classifier.preprocess_for(splits) == preprocess


def test_export_before_training_is_an_error(tmp_path: Path, workshop: Workshop) -> None:
    with pytest.raises(ExportError, match="missing: train the model first"):
        classifier.export("cnn", tmp_path, workshop.splits, Target(tmp_path / "models"))
    assert not (tmp_path / "models").exists()
