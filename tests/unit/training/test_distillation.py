"""Distillation: a student that imitates a published classifier."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from service.errors import RepositoryError
from service.models.manifest import read_manifest
from tests.support.idx_files import write_folder
from tests.support.tiny_runs import CNN, Workshop, new_run
from training.datasets.splits import load
from training.errors import SourceError
from training.evaluation.classification import readings
from training.families import classifier
from training.families.teacher import Teacher
from training.versions import Target


def test_targets_are_the_probabilities_that_the_published_graph_gives(workshop: Workshop) -> None:
    folder = workshop.models / "cnn" / "1"
    images = torch.from_numpy(workshop.splits.test.images[:7].copy()).unsqueeze(1).float() / 255
    targets = Teacher(folder, workshop.splits).targets(images, 1.0)
    expected = readings(folder / "model.onnx", workshop.splits.test).probabilities[:7]
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-5)


def test_a_high_temperature_evens_the_targets_out_and_keeps_their_order(workshop: Workshop) -> None:
    images = torch.from_numpy(workshop.splits.test.images.copy()).unsqueeze(1).float() / 255
    teacher = Teacher(workshop.models / "cnn" / "1", workshop.splits)
    sharp, even = teacher.targets(images, 1.0), teacher.targets(images, 8.0)
    assert torch.equal(sharp.argsort(1)[:, -2:], even.argsort(1)[:, -2:])
    assert (even.max(1).values < sharp.max(1).values).all()
    torch.testing.assert_close(even.sum(1), torch.ones(len(images)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_teachers_part_has_the_gradient_of_the_divergence(temperature: float) -> None:
    config = dataclasses.replace(CNN, teacher_weight=0.7, temperature=temperature)
    torch.manual_seed(0)
    logits = torch.randn(6, 10, requires_grad=True)
    labels, targets = torch.arange(6), torch.randn(6, 10).softmax(1)
    classifier.loss_of(logits, labels, targets, config).backward()
    divergence = functional.kl_div((logits / temperature).log_softmax(1), targets, reduction="batchmean")
    by_hand = 0.3 * functional.cross_entropy(logits, labels) + 0.7 * temperature**2 * divergence
    (expected,) = torch.autograd.grad(by_hand, logits)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_a_student_comes_to_agree_with_its_teacher_and_not_with_the_labels(
    tmp_path: Path, workshop: Workshop
) -> None:
    """The labels are wrong on purpose: only the teacher can have taught what the student knows."""
    splits = workshop.splits
    wrong = dataclasses.replace(splits.train, labels=(splits.train.labels + 1) % 10)
    folder = workshop.models / "cnn" / "1"
    config = dataclasses.replace(
        classifier.MLP,
        epochs=12,
        batch_size=20,
        teacher=str(folder),
        ema_decay=0.9,
        rotation_degrees=0.0,
        scale=0.0,
        shear=0.0,
        translation=0.0,
        elastic_alpha=0.0,
    )
    run = new_run(tmp_path / "run", config, origin={"model": "mlp", "data_digest": splits.digest})
    classifier.train(config, dataclasses.replace(splits, train=wrong), run)
    made = classifier.export("mlp", tmp_path / "run", splits, Target(tmp_path / "models"))
    student = readings(made / "model.onnx", splits.test).probabilities.argmax(1)
    teacher = readings(folder / "model.onnx", splits.test).probabilities.argmax(1)
    assert (student == teacher).mean() > 0.8
    assert f"the probabilities that `{folder}` gives" in " ".join((made / "README.md").read_text().split())
    assert read_manifest(made).task == "classification"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gan/1", SourceError, "is a model for generation, expected classification"),
        ("nosuch/1", RepositoryError, "nosuch"),
    ],
)
def test_what_cannot_teach_is_refused(
    name: str, error: type[Exception], message: str, workshop: Workshop
) -> None:
    with pytest.raises(error, match=message):
        Teacher(workshop.models / name, workshop.splits)


def test_a_teacher_of_other_data_is_refused(tmp_path: Path, workshop: Workshop) -> None:
    other = load(write_folder(tmp_path / "other", seed=5))
    with pytest.raises(SourceError, match="but the data given is"):
        Teacher(workshop.models / "cnn" / "1", other)
