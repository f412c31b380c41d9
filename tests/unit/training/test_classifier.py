import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from service.models.manifest import read_manifest
from tests.support.tiny_runs import CNN, Workshop, assert_same_state, new_run
from training.export.publish import ExportError, Target, open_session
from training.families import classifier

MLP = dataclasses.replace(classifier.MLP, epochs=1, batch_size=20)


@pytest.mark.parametrize("config", [classifier.MLP, classifier.CNN], ids=["mlp", "cnn"])
def test_folded_network_is_the_same_function(config: classifier.Config) -> None:
    torch.manual_seed(0)
    network = classifier.build(config).double()
    with torch.no_grad():
        for _ in range(2):  # so that the running statistics are not those of a fresh network
            network(torch.rand(20, 1, 28, 28).double())
    network.eval()
    body = classifier.fold_batch_norm(network.body)
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout) for layer in body)
    images = torch.rand(7, 1, 28, 28).double()
    # float64: only the order of the products differs
    torch.testing.assert_close(body(images), network.body(images), rtol=1e-10, atol=1e-12)


def test_batch_normalisation_with_nothing_to_fold_into_stays() -> None:
    body = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2), nn.Dropout(0.5)).eval()
    folded = classifier.fold_batch_norm(body)
    assert [type(layer) for layer in folded] == [nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_features_are_not_negative_and_probabilities_sum_to_one() -> None:
    serving = classifier.Serving(classifier.build(CNN).eval())
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    probabilities, logits, features = serving(images)
    assert (probabilities.shape, logits.shape, features.shape) == ((5, 10), (5, 10), (5, 128))
    assert features.min() >= 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(probabilities, logits.softmax(1))


def test_validation_gives_accuracy_and_mean_loss() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(network[1].weight)
    with torch.no_grad():
        network[1].bias.copy_(torch.arange(10.0) == 3)
    images = torch.zeros(1001, 1, 28, 28, dtype=torch.uint8)  # three parts
    labels = torch.full((1001,), 3)
    labels[0] = 5
    accuracy, loss = classifier.validate(network, images, labels)
    normaliser = np.log(np.e + 9)
    # float32 means
    assert accuracy == pytest.approx(1000 / 1001, rel=1e-6)
    assert loss == pytest.approx((1000 * (normaliser - 1) + normaliser) / 1001, rel=1e-5)


def test_score_prefers_accuracy_and_then_the_smaller_loss() -> None:
    scores = [
        classifier._score({"validation_accuracy": accuracy, "validation_loss": loss})
        for accuracy, loss in ((0.99, 0.03), (0.99, 0.02), (0.80, 0.5))
    ]
    assert scores[1] > scores[0] > scores[2]


def test_mlp_trains_and_a_run_repeats_to_the_same_bits(tmp_path: Path, workshop: Workshop) -> None:
    for name in ("first", "second"):
        run = new_run(tmp_path / name, MLP)
        classifier.train(MLP, workshop.splits, run)
    assert_same_state(tmp_path / "first", tmp_path / "second")
    names = {"train_loss", "validation_loss", "validation_accuracy", "learning_rate"}
    assert names < run.history[-1].keys()


def test_training_lowers_the_loss(workshop: Workshop) -> None:
    metrics = read_manifest(workshop.models / "cnn" / "1").metrics
    assert float(metrics["test_nll"]) < np.log(10)
    assert float(metrics["test_accuracy"]) > 0.2


def test_published_classifier_tells_its_tensors(workshop: Workshop) -> None:
    folder = workshop.models / "cnn" / "1"
    manifest = read_manifest(folder)
    assert (manifest.task, manifest.labels) == ("classification", tuple("0123456789"))
    session = open_session(folder / "model.onnx", ["features", "logits"])
    images = workshop.splits.test.images
    probabilities, features, logits = session.run(["probabilities", "features", "logits"], {"images": images})
    assert (features.shape, logits.shape) == ((60, 128), (60, 10))
    correct = probabilities.argmax(1) == workshop.splits.test.labels
    assert manifest.metrics["test_errors"] == int((~correct).sum())
    assert manifest.metrics["test_accuracy"] == pytest.approx(correct.mean(), abs=1e-6)  # six decimals


def test_export_before_training_says_so(tmp_path: Path, workshop: Workshop) -> None:
    with pytest.raises(ExportError, match="missing: train the model first"):
        classifier.export("cnn", tmp_path, workshop.splits, Target(tmp_path / "models"))
    assert not (tmp_path / "models").exists()
