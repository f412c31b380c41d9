"""Distillation: a student that imitates a published classifier."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from service.errors import RepositoryError
from service.models.manifest import read_manifest
from tests.support.idx_files import write_folder
from tests.support.tiny_runs import CNN, Workshop, new_run
from training.datasets.splits import load
from training.ensembles.combine import mean_of
from training.errors import SourceError
from training.evaluation.classification import readings
from training.families import classifier
from training.families.cuda_session import PROVIDER, CudaSession
from training.families.teacher import Teacher
from training.versions import Target

HAS_PROVIDER = PROVIDER in onnxruntime.get_available_providers()
CUDA = pytest.mark.skipif(
    not (HAS_PROVIDER and torch.cuda.is_available()),
    reason="no CUDA device, or a torch or an onnxruntime without CUDA",
)


def digits(workshop: Workshop) -> Tensor:
    """The test images as a run deforms them: (n, 1, 28, 28) float in 0..1."""
    return torch.from_numpy(workshop.splits.test.images.copy()).unsqueeze(1).float() / 255


def trio(folder: Path) -> onnx.ModelProto:
    """An ensemble of three times the same classifier."""
    return mean_of([onnx.load(folder / "model.onnx") for _ in range(3)])


def test_targets_are_the_probabilities_that_the_published_graph_gives(workshop: Workshop) -> None:
    folder = workshop.models / "cnn" / "1"
    images = digits(workshop)[:7]
    targets = Teacher(folder, workshop.splits).targets(images, 1.0)
    expected = readings(folder / "model.onnx", workshop.splits.test).probabilities[:7]
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-5)


def test_a_high_temperature_evens_the_targets_out_and_keeps_their_order(workshop: Workshop) -> None:
    images = digits(workshop)
    teacher = Teacher(workshop.models / "cnn" / "1", workshop.splits)
    sharp, even = teacher.targets(images, 1.0), teacher.targets(images, 8.0)
    assert torch.equal(sharp.argsort(1)[:, -2:], even.argsort(1)[:, -2:])
    assert (even.max(1).values < sharp.max(1).values).all()
    torch.testing.assert_close(even.sum(1), torch.ones(len(images)))


@pytest.mark.skipif(HAS_PROVIDER, reason="this onnxruntime has CUDA")
def test_a_teacher_whose_onnxruntime_has_no_cuda_says_so_and_runs_on_the_cpu(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = workshop.models / "cnn" / "1", digits(workshop)
    on_cpu = Teacher(folder, workshop.splits).targets(images, 1.0)
    assert capsys.readouterr().err == ""
    fallen_back = Teacher(folder, workshop.splits, torch.device("cuda")).targets(images, 1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the teacher runs on the CPU, because this onnxruntime has ")
    assert torch.equal(fallen_back, on_cpu)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize(("tf32", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_a_teacher_on_the_gpu_gives_the_cpus_targets_in_order_with_torchs_work(
    workshop: Workshop, tf32: bool, tolerance: float
) -> None:
    device, folder = torch.device("cuda"), workshop.models / "cnn" / "1"
    on_gpu = Teacher(folder, workshop.splits, device, tf32=tf32)
    on_cpu, images = Teacher(folder, workshop.splits), digits(workshop)
    busy = torch.randn(4096, 4096, device=device)
    for shift in range(8):
        expected = on_cpu.targets(images.roll(shift, 2), 2.0)
        busy = (busy @ busy).clamp(-1, 1)  # so that the images are not there yet when the teacher is asked
        rolled = (images.to(device) + busy[:1, :1].reshape(1, 1, 1, 1) * 0).roll(shift, 2)
        seen = on_gpu.targets(rolled, 2.0)
        torch.testing.assert_close(seen.cpu(), expected, atol=tolerance, rtol=0)


@pytest.mark.gpu
@CUDA
def test_an_ensemble_teaches_on_the_gpu(tmp_path: Path, workshop: Workshop) -> None:
    ensemble = trio(workshop.models / "cnn" / "1")
    onnx.save(ensemble, tmp_path / "model.onnx")
    pixels = torch.from_numpy(workshop.splits.test.images.copy())
    seen = CudaSession(tmp_path / "model.onnx", torch.device("cuda"), tf32=False).probabilities(pixels.cuda())
    expected = readings(workshop.models / "cnn" / "1" / "model.onnx", workshop.splits.test).probabilities
    np.testing.assert_allclose(seen.cpu().numpy(), expected, atol=1e-5)


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
