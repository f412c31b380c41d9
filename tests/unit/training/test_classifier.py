import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from service.models.manifest import read_manifest
from tests.support.tiny_runs import CNN, Workshop, assert_same_state, new_run
from training.errors import ExportError
from training.families import classifier
from training.onnx_files import open_session
from training.versions import Target

MLP = dataclasses.replace(classifier.MLP, epochs=1, batch_size=20)


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
