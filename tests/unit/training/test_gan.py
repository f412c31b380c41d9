import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from service.models.manifest import read_manifest
from tests.support.tiny_runs import GAN, Interrupted, StoppingRun, Workshop, assert_same_state, new_run
from training.datasets.splits import SIDE
from training.errors import EvaluationError, SourceError
from training.evaluation import epochs
from training.families import gan
from training.families.adversary import Adversary, gradient_penalty, relativistic_loss
from training.onnx_files import open_session
from training.runs.finished import read_weights
from training.runs.run import CHECKPOINT_FILE, CURVES_FILE
from training.versions import Target


def test_generator_upsamples_from_7_to_28_pixels() -> None:
    generator = gan.Generator(GAN)
    shapes: list[tuple[int, ...]] = []
    for layer in generator.body:
        if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    images = generator(torch.randn(3, GAN.latent), torch.tensor([0, 5, 9]))
    assert [shape[2] for shape in shapes] == [7, 14, 28]
    assert images.shape == (3, 1, SIDE, SIDE)
    assert images.min() >= -1
    assert images.max() <= 1


def test_label_outside_the_classes_gives_an_image() -> None:
    torch.manual_seed(0)  # with some weights this tiny network draws the same for all classes
    generator = gan.Generator(GAN).eval()
    z = torch.randn(1, GAN.latent).expand(4, -1)
    images = generator(z, torch.tensor([1, 2, -1, 10]))
    assert not torch.equal(images[0], images[1])
    torch.testing.assert_close(images[2], images[3])


def adversaries(tmp_path: Path, config: gan.Config = GAN) -> tuple[gan.Adversaries, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(20) % 10
    two = gan.Adversaries(config, new_run(tmp_path, config), gan.Generator(config))
    return two, torch.rand(20, 1, SIDE, SIDE) * 2 - 1, labels, torch.randn(20, GAN.latent)


def test_generator_step_leaves_the_discriminator_unchanged(tmp_path: Path) -> None:
    two, real, labels, z = adversaries(tmp_path)
    generator, discriminator = two.state["generator"], two.state["discriminator"]
    two.step(real, labels, z, with_r1=True)
    weights = copy.deepcopy(discriminator.state_dict())
    gradients = [weight.grad.clone() for weight in discriminator.parameters()]
    before = copy.deepcopy(generator.state_dict())
    two.train_generator(real, generator(z, labels), labels)
    assert all(torch.equal(weights[name], value) for name, value in discriminator.state_dict().items())
    assert all(map(torch.equal, gradients, [weight.grad for weight in discriminator.parameters()]))
    assert all(weight.requires_grad for weight in discriminator.parameters())
    assert not torch.equal(before["dense.0.weight"], generator.state_dict()["dense.0.weight"])


def test_discriminator_step_leaves_the_generator_unchanged(tmp_path: Path) -> None:
    two, real, labels, z = adversaries(tmp_path)
    generator = two.state["generator"]
    two.adversary.train(real, generator(z, labels), labels, with_r1=True)
    assert all(weight.grad is None for weight in generator.parameters())


def test_relativistic_steps_punish_both_gradients(tmp_path: Path) -> None:
    config = dataclasses.replace(GAN, pairing="relativistic", r2_gamma=1.0)
    two, real, labels, z = adversaries(tmp_path, config)
    generator = two.state["generator"]
    fake = generator(z, labels)
    discriminator = two.state["discriminator"]
    expected = gradient_penalty(discriminator, fake, labels).item()
    metrics = two.adversary.train(real, fake, labels, with_r1=True)
    assert metrics["r2"].item() == pytest.approx(expected, rel=1e-4)
    assert all(weight.grad is None for weight in generator.parameters())
    loss = two.train_generator(real, fake, labels)["generator_loss"]
    assert loss.item() == pytest.approx(
        relativistic_loss(discriminator(fake, labels), discriminator(real, labels)).item(), rel=1e-4
    )


def test_the_rate_falls_along_a_line(tmp_path: Path) -> None:
    config = dataclasses.replace(GAN, learning_rate_end=0.25)
    two, *_ = adversaries(tmp_path, config)
    for progress, share in ((0.0, 1.0), (0.5, 0.625), (1.0, 0.25)):
        two.set_rate(progress)
        for name in ("generator_optimizer", "discriminator_optimizer"):
            (group,) = two.state[name].param_groups
            assert group["lr"] == pytest.approx(share * GAN.learning_rate)


def test_the_discriminator_gets_ahead_of_the_generator(tmp_path: Path) -> None:
    config = dataclasses.replace(GAN, learning_rate_end=0.0, rate_ratio=10.0, warm_up=0.2)
    two, *_ = adversaries(tmp_path, config)
    for progress, generator, discriminator in ((0.0, 0, 10), (0.1, 0, 9), (0.2, 0.8, 8), (0.9, 0.1, 1)):
        rate = two.set_rate(progress)
        assert rate == pytest.approx(generator * GAN.learning_rate)
        for name, share in (("generator", generator), ("discriminator", discriminator)):
            (group,) = two.state[f"{name}_optimizer"].param_groups
            assert group["lr"] == pytest.approx(share * GAN.learning_rate)


def test_the_discriminator_sees_all_images_under_the_noise(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "losses": []}

    class Watched(Adversary):
        def train(self, real: Tensor, fake: Tensor, *others: Any) -> Any:
            seen["train"] += [real, fake]
            return super().train(real, fake, *others)

        def losses(self, real: Tensor, fake: Tensor, *others: Any) -> Any:
            seen["losses"] += [real, fake]
            return super().losses(real, fake, *others)

    monkeypatch.setattr(gan, "Adversary", Watched)
    for noise in (0.0, 0.1):
        config = dataclasses.replace(GAN, epochs=1, noise=noise)
        gan.train(config, workshop.splits, new_run(tmp_path / f"{noise}", config))
    for images in seen.values():
        clean, noisy = images[: len(images) // 2], images[len(images) // 2 :]
        assert (torch.stack(clean).abs() <= 1).all()
        for each in range(2):  # of the first step: the real ones, and those of a generator as yet the same
            assert (noisy[each] - clean[each]).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_classes_are_learned_from_real_images_and_teach_the_generator(tmp_path: Path) -> None:
    two, real, labels, z = adversaries(tmp_path, dataclasses.replace(GAN, class_weight=0.5))
    generator, discriminator = two.state["generator"], two.state["discriminator"]
    fake = generator(z, labels)
    judged = discriminator(real, labels, True)
    assert judged.shape == (20, 11)
    torch.testing.assert_close(judged[:, 0], discriminator(real, labels))
    expected = nn.functional.cross_entropy(judged[:, 1:], labels).item()
    metrics = two.adversary.train(real, fake, labels, with_r1=True)
    assert metrics["class_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert all(weight.grad is not None for weight in discriminator.parameters())
    heads = copy.deepcopy(discriminator.classes.state_dict())
    two.train_generator(real, fake, labels)
    assert all(torch.equal(heads[name], value) for name, value in discriminator.classes.state_dict().items())


def test_samples_are_judged_every_interval_and_at_the_end(tmp_path: Path, workshop: Workshop) -> None:
    judge = str(workshop.models / "cnn" / "1")
    config = dataclasses.replace(GAN, epochs=5, judge=judge, judge_interval=2, sample_interval=10_000)
    gan.train(config, workshop.splits, new_run(tmp_path, config))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "validation_distance" in line] == [2, 4, 5]
    assert (tmp_path / CURVES_FILE).is_file()


def test_run_keeps_a_sample_grid_every_interval(workshop: Workshop) -> None:
    folder = workshop.runs / "gan"
    grids = sorted(path.name for path in (folder / gan.SAMPLES_FOLDER).iterdir())
    steps = GAN.epochs * (len(workshop.splits.train) // GAN.batch_size)
    assert grids == [f"step-{step:06d}.png" for step in range(7, steps + 1, 7)]
    for path in (gan.step_file(folder, 7), folder / gan.SAMPLES_FILE):
        assert np.asarray(Image.open(path)).shape == (280, 280)
    assert (folder / CURVES_FILE).is_file()
    losses = {"discriminator_loss", "generator_loss", "r1", "real_probability", "fake_probability"}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert losses < json.loads(line).keys()


def test_resumed_run_ends_with_the_same_bits_and_grids(tmp_path: Path, workshop: Workshop) -> None:
    whole = workshop.runs / "gan"
    cut = new_run(tmp_path, GAN, kind=StoppingRun)
    with pytest.raises(Interrupted):
        gan.train(GAN, workshop.splits, cut)
    gan.train(GAN, workshop.splits, new_run(tmp_path, GAN, resume=True))
    assert_same_state(tmp_path, whole)
    grids = [
        {path.name: path.read_bytes() for path in (folder / gan.SAMPLES_FOLDER).iterdir()}
        for folder in (tmp_path, whole)
    ]
    assert grids[0] == grids[1]


def test_sample_grids_do_not_change_the_training(tmp_path: Path, workshop: Workshop) -> None:
    seldom = dataclasses.replace(GAN, sample_interval=10_000)
    gan.train(seldom, workshop.splits, new_run(tmp_path, seldom))
    assert_same_state(tmp_path, workshop.runs / "gan")


def test_the_card_names_the_loss_and_the_rate_of_the_run() -> None:
    assert gan.loss_words(gan.CONFIG) == "Non-saturating loss with R1 (gamma 1, every 16 steps)"
    assert gan.rate_words(gan.CONFIG) == "0.0002"
    assert gan.beginning_words(gan.CONFIG) == gan.discriminator_words(gan.CONFIG) == ""
    config = dataclasses.replace(
        gan.CONFIG, pairing="relativistic", r2_gamma=0.5, class_weight=0.1, learning_rate_end=0.05
    )
    assert gan.loss_words(config) == (
        "Relativistic loss and the classes' cross-entropy (weight 0.1) with R1 and R2 "
        "(gamma 1 and 0.5, every 16 steps)"
    )
    assert gan.rate_words(config) == "0.0002, falling along a line to 0.05 times that"
    config = dataclasses.replace(gan.CONFIG, noise=0.1, class_ratio=5.0, rate_ratio=10.0, warm_up=0.2)
    assert gan.discriminator_words(config) == (
        "The discriminator's learning rate is 10 times the generator's. "
        "The discriminator's weight of the classes is 5 times the generator's. "
        "The discriminator learns alone in the first 20 % of the steps. "
        "The discriminator sees all images under noise of 0.1. "
    )
    config = dataclasses.replace(gan.CONFIG, source="models/gan/1")
    assert "began with the weights of `models/gan/1`" in gan.beginning_words(config)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["models/gan/1", "runs/gan"])
def test_a_run_goes_on_from_an_earlier_one(source: str, tmp_path: Path, workshop: Workshop) -> None:
    source = str(workshop.runs.parent / source)
    config = dataclasses.replace(GAN, epochs=1, source=source)
    network = gan.initial(config, workshop.splits)
    assert network.training
    z, labels = torch.randn(50, GAN.latent), torch.arange(50) % 10
    with torch.no_grad():
        drawn = gan.Drawing(network, config.contrast)(z, labels).numpy()
    session = open_session(workshop.models / "gan" / "1" / "model.onnx")
    (expected,) = session.run(None, {"z": z.numpy(), "label": labels.numpy()})
    assert np.abs(drawn.astype(int) - expected).max() <= 1  # float32 sums in another order
    run_dir = tmp_path / "run"
    origin = {"model": "gan", "data_digest": workshop.splits.digest}
    gan.train(config, workshop.splits, new_run(run_dir, config, origin=origin))
    models = tmp_path / "models"
    shutil.copytree(workshop.models / "judge", models / "judge")
    folder = gan.export("gan", run_dir, workshop.splits, Target(models))
    assert f"began with the weights of `{source}`" in (folder / "README.md").read_text()


def test_the_last_epoch_can_be_kept(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = iter((1.0, 2.0, 1.0, 2.0))
    monkeypatch.setattr(epochs, "frechet_distance", lambda *_: next(distances))
    for kept in ("closest", "last"):
        config = dataclasses.replace(GAN, judge=str(workshop.models / "cnn" / "1"), kept=kept)
        run = new_run(tmp_path / kept, config)
        gan.train(config, workshop.splits, run)
        assert [line["validation_distance"] for line in run.history] == [1.0, 2.0]
        last = torch.load(tmp_path / kept / CHECKPOINT_FILE)["state"]["ema"]
        weights = read_weights(tmp_path / kept)
        same = all(torch.equal(weights[name], last[f"module.{name}"]) for name in weights)
        assert same == (kept == "last")


def test_contrast_moves_every_level_away_from_grey() -> None:
    network, labels = gan.Generator(GAN), torch.arange(20) % 10
    z = torch.randn(20, GAN.latent)
    plain, strong = (gan.Drawing(network, contrast)(z, labels).double() for contrast in (1.0, 1.5))
    expected = (127.5 + 1.5 * (plain - 127.5)).clamp(0, 255)
    assert (strong - expected).abs().max() <= 1.25  # both are rounded


def test_a_source_of_another_kind_is_one_line(workshop: Workshop) -> None:
    for name, message in (
        ("cnn", "a model for classification, expected generation"),
        ("vae", "another network"),
    ):
        config = dataclasses.replace(GAN, source=str(workshop.models / name / "1"))
        with pytest.raises(SourceError, match=message):
            gan.initial(config, workshop.splits)
    for source in (workshop.models / "gan" / "1", workshop.runs / "gan"):
        config = dataclasses.replace(GAN, hidden=GAN.hidden + 1, source=str(source))
        with pytest.raises(SourceError, match="expected"):
            gan.initial(config, workshop.splits)


def test_folded_generator_is_the_same_function() -> None:
    torch.manual_seed(0)
    generator = gan.Generator(GAN).double()
    for _ in range(3):  # so that the running statistics are not those of a fresh network
        generator(torch.randn(50, GAN.latent).double() * 2 + 1, torch.arange(50) % 10)
    folded = gan.folded(generator)
    z, labels = torch.randn(9, GAN.latent).double(), torch.arange(9)
    # float64: only the order of the products differs
    torch.testing.assert_close(folded(z, labels), generator.eval()(z, labels), rtol=1e-10, atol=1e-12)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in folded.modules())


def test_published_generator_names_its_tensors_and_metrics(workshop: Workshop) -> None:
    folder = workshop.models / "gan" / "1"
    manifest = read_manifest(folder)
    assert (manifest.task, manifest.labels) == ("generation", workshop.splits.labels)
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)] == [
        ("z", "FP32", (-1, GAN.latent)),
        ("label", "INT64", (-1,)),
        ("images", "UINT8", (-1, SIDE, SIDE)),
    ]
    assert manifest.metrics["samples"] == len(workshop.splits.test)
    assert manifest.metrics["classifier"] == "judge/1"
    quality = {"frechet_distance", "precision", "recall", "class_distance"}
    quality |= {"label_agreement", "worst_label_agreement"}
    assert quality | {f"real_{name}" for name in quality} < manifest.metrics.keys()
    assert np.asarray(Image.open(folder / gan.SAMPLES_FILE)).shape == (280, 280)


def test_published_generator_accepts_any_rows_and_labels(workshop: Workshop) -> None:
    path = workshop.models / "gan" / "1" / "model.onnx"
    assert {node.op_type for node in onnx.load(path).graph.node} >= {"ConvTranspose"}
    session = open_session(path)
    z = np.random.default_rng(0).normal(size=(257, GAN.latent)).astype(np.float32)
    labels = np.arange(257) % 10
    labels[5] = 99
    for rows in (1, 3, 257):
        (images,) = session.run(None, {"z": z[:rows], "label": labels[:rows]})
        assert images.shape == (rows, SIDE, SIDE)
        assert images.dtype == np.uint8


def test_export_without_a_judge_says_what_to_run(tmp_path: Path, workshop: Workshop) -> None:
    with pytest.raises(EvaluationError, match="first run python -m training train judge and python -m"):
        gan.export("gan", workshop.runs / "gan", workshop.splits, Target(tmp_path / "models"))
    assert not (tmp_path / "models").exists()
