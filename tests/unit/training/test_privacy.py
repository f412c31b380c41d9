"""Private training: the bound on each image, the epsilon of the steps, what is refused, what is published."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.models.manifest import read_manifest
from tests.support.tiny_runs import Interrupted, StoppingRun, assert_same_state, new_run
from training.__main__ import main
from training.datasets.splits import Splits
from training.errors import PrivacyError
from training.evaluation.evaluate import evaluate
from training.privacy import family
from training.privacy.accounting import epsilon_of, noise_for
from training.privacy.guarantee import bound_on_attacks, read_guarantee
from training.privacy.scattering import FEATURES, Scattering
from training.privacy.sgd import ROWS_AT_ONCE, PrivateSgd, Sgd, poisson
from training.runs.finished import read_history
from training.versions import Target

pytestmark = pytest.mark.slow

TINY = dataclasses.replace(
    family.CONFIG, epochs=2, batch_size=40, delta=1e-3, accountant="rdp", noise="seeded"
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, splits: Splits) -> Path:
    """A finished private run, which no test may change."""
    folder = tmp_path_factory.mktemp("runs") / "private"
    origin = {"model": "private", "data_digest": splits.digest}
    family.train(TINY, splits, new_run(folder, TINY, origin=origin))
    return folder


def private(
    model: nn.Module, images: int, batch_size: int, noise: float = 0.0, clip: float = 0.5
) -> PrivateSgd:
    return PrivateSgd(
        model,
        noise_multiplier=noise,
        clip_norm=clip,
        images=images,
        batch_size=batch_size,
        learning_rate=1.0,
        momentum=0.0,
        generator=torch.Generator().manual_seed(0),
    )


def step_of(images: Sequence[int], inputs: Tensor, labels: Tensor, clip: float = 0.5) -> Tensor:
    """The change of all weights by one noiseless step on exactly these images, times the batch size of 1."""
    torch.manual_seed(0)
    model = nn.Linear(inputs.shape[1], 10)
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    # Everything is drawn with a rate of 1, and the sum is divided by the expected size.
    private(model, len(images), len(images), clip=clip).step(inputs[list(images)], labels[list(images)])
    return (before - nn.utils.parameters_to_vector(model.parameters())).detach() * len(images)


def test_no_image_moves_the_weights_by_more_than_the_bound() -> None:
    """A step's sum is that of its images' own steps, each of norm 1 (in multiples of the bound) at most."""
    torch.manual_seed(1)
    inputs, labels = (
        torch.randn(6, 12) * torch.tensor([[1e-3], [0.01], [1], [5], [100], [1e4]]),
        torch.arange(6),
    )
    single = [step_of([i], inputs, labels) for i in range(6)]
    norms = [float(each.norm()) for each in single]
    assert max(norms) <= 1 + 1e-5
    assert sum(norm > 0.99 for norm in norms) >= 3  # were clipped
    together = step_of(range(6), inputs, labels)
    torch.testing.assert_close(together, torch.stack(single).sum(0), rtol=1e-4, atol=1e-5)


def test_an_image_within_the_bound_is_not_clipped() -> None:
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(12, 10), torch.randn(1, 12), torch.tensor([3])
    loss = nn.functional.cross_entropy(model(inputs), labels)
    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])
    assert float(gradient.norm()) < 100
    torch.manual_seed(0)
    torch.testing.assert_close(step_of([0], inputs, labels, clip=100) * 100, gradient, rtol=1e-4, atol=1e-4)


def test_a_large_sample_is_clipped_image_by_image_over_its_parts() -> None:
    torch.manual_seed(1)
    images = ROWS_AT_ONCE + 3
    inputs, labels = torch.randn(images, 12), torch.zeros(images, dtype=torch.int64)
    whole = step_of(range(images), inputs, labels)
    parts = step_of(range(500), inputs, labels) + step_of(range(500, images), inputs, labels)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3)


def test_the_noise_has_the_recorded_deviation_and_an_empty_sample_gets_it_too() -> None:
    model = nn.Linear(2000, 10)
    before = model.weight.detach().clone()
    sgd = private(model, images=10**9, batch_size=4, noise=3.0)
    sgd.step(torch.zeros(2, 2000), torch.zeros(2, dtype=torch.int64))  # drawn with a rate of 4e-9
    moved = (before - model.weight.detach()).flatten()
    assert float(moved.std()) == pytest.approx(3.0 / 4, rel=0.03)  # 20,000 draws: 0.5 % is one deviation
    assert sgd.history == [(3.0, 4e-9, 1)]


def test_a_sample_takes_each_image_independently_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [poisson(200, 0.25, generator) for _ in range(400)]
    sizes = torch.tensor([float(len(each)) for each in drawn])
    assert float(sizes.mean()) == pytest.approx(50, abs=1)
    assert float(sizes.var()) == pytest.approx(200 * 0.25 * 0.75, rel=0.25)  # of a binomial, not 0
    counts = torch.bincount(torch.cat(drawn), minlength=200)
    assert float(counts.float().std()) == pytest.approx(math.sqrt(400 * 0.25 * 0.75), rel=0.25)


def test_batch_normalisation_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    with pytest.raises(PrivacyError, match=r"layer 1 is a BatchNorm1d, which mixes the images of a batch"):
        private(model, 10, 5)


def test_the_noise_spends_the_budget_and_not_more() -> None:
    noise = noise_for(3.0, 1e-5, 0.02, 300, "rdp")
    history = [(noise, 0.02, 300)]
    assert 0.99 * 3 < epsilon_of(history, 1e-5, "rdp") <= 3.0
    assert 2.0 < epsilon_of(history, 1e-5, "prv") < epsilon_of(history, 1e-5, "rdp")  # tighter
    assert epsilon_of([(noise, 0.02, 600)], 1e-5, "rdp") > 3.5


def test_features_are_each_images_own() -> None:
    body, images = Scattering(), torch.rand(5, 1, 28, 28)
    together = body(images)
    assert together.shape == (5, FEATURES)
    torch.testing.assert_close(together[3:4], body(images[3:4]), rtol=1e-4, atol=1e-4)
    assert not list(body.parameters())


def test_scattering_tells_orientations_apart() -> None:
    """A horizontal and a vertical edge answer to the wavelets that run along them."""
    stripes = (torch.arange(28) % 4 < 2).float().view(1, 1, 1, 28).expand(1, 1, 28, 28)
    wavelets = Scattering().get_buffer("wavelets_0")
    answers = []
    for image in (stripes, stripes.transpose(2, 3)):
        real, imaginary = nn.functional.conv2d(image, wavelets).chunk(2, dim=1)
        answers.append(int((real.square() + imaginary.square()).mean((0, 2, 3)).argmax()))
    assert answers == [0, 4]


def test_a_run_records_the_epsilon_of_its_steps_and_no_loss_of_training_images(run_dir: Path) -> None:
    guarantee = read_guarantee(run_dir)
    assert (guarantee.images, guarantee.steps) == (220, 2 * (220 // 40))
    history = [(guarantee.noise_multiplier, guarantee.sampling_rate, guarantee.steps)]
    assert guarantee.epsilon == epsilon_of(history, TINY.delta, "rdp") == guarantee.epsilon_rdp
    assert 0.99 * TINY.epsilon < guarantee.epsilon <= TINY.epsilon
    lines = read_history(run_dir)
    assert lines[0]["epsilon"] < lines[1]["epsilon"] == guarantee.epsilon
    assert not [name for line in lines for name in line if name.startswith("train_")]


def test_a_resumed_run_counts_the_steps_before_and_ends_with_the_same_bits(
    tmp_path: Path, splits: Splits, run_dir: Path
) -> None:
    with pytest.raises(Interrupted):
        family.train(TINY, splits, new_run(tmp_path / "cut", TINY, kind=StoppingRun))
    family.train(TINY, splits, new_run(tmp_path / "cut", TINY, resume=True))
    assert_same_state(run_dir, tmp_path / "cut")
    assert read_guarantee(tmp_path / "cut") == read_guarantee(run_dir)


def test_secret_seeds_are_new_each_time_and_are_the_default() -> None:
    assert family.CONFIG.noise == "secret"
    assert len({family.seed_of(family.CONFIG, 7) for _ in range(20)}) == 20
    assert family.seed_of(TINY, 7) == 7


def test_without_privacy_the_same_recipe_has_no_guarantee(tmp_path: Path, splits: Splits) -> None:
    config = dataclasses.replace(TINY, privacy="none")
    family.train(config, splits, new_run(tmp_path, config))
    assert read_history(tmp_path)[-1]["validation_accuracy"] > 0.5
    assert "train_loss" in read_history(tmp_path)[-1]
    with pytest.raises(PrivacyError, match="expected the guarantee of a run"):
        read_guarantee(tmp_path)


def test_an_exported_model_tells_its_guarantee(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    folder = family.export("private", run_dir, splits, Target(tmp_path / "models"))
    guarantee, manifest = read_guarantee(run_dir), read_manifest(folder)
    facts = dict(each.split("=") for each in str(manifest.metrics["privacy"]).split()[1:])
    assert float(facts["epsilon"]) == pytest.approx(guarantee.epsilon, rel=1e-4)
    assert {*facts} >= {"delta", "accountant", "sampling_rate", "noise_multiplier", "clip_norm", "steps"}
    assert "(8.00, 0.001)-differential privacy" in str(manifest.description)
    page = (folder / "README.md").read_text()
    assert f"epsilon {guarantee.epsilon:.3f} at delta 0.001 by the rdp accountant" in " ".join(page.split())
    assert evaluate(["private"], tmp_path / "models", splits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["batch_size=40", "delta=0.01"], "delta is 0.01, expected less than 1 / 220, the number of images"),
        (["batch_size=500"], "batch size 500 does not fit 220 images"),
        (["precision=bf16-mixed"], "precision is bf16-mixed, expected 32-true"),
        (["epsilon=0"], "--set epsilon=0: expected more than 0"),
    ],
)
def test_what_cannot_be_private_is_one_line(
    changes: list[str],
    message: str,
    tmp_path: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for each in changes for word in ("--set", each)]
    arguments = ["train", "private", "--data-dir", str(data_dir), "--run-dir", str(tmp_path / "run")]
    assert main([*arguments, "--device", "cpu", *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert message in said[0]


def test_the_bound_on_attacks_grows_from_guessing_to_certainty() -> None:
    assert bound_on_attacks(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert bound_on_attacks(1.0, 1e-5, 0.01) == pytest.approx(math.e * 0.01 + 1e-5)
    assert bound_on_attacks(1.0, 0.0, 0.9) == pytest.approx(1 - math.exp(-1) * 0.1)
    assert bound_on_attacks(1000.0, 0.0, 0.01) == 1


def test_sgd_without_privacy_divides_by_the_expected_size() -> None:
    model = nn.Linear(3, 10, bias=False)
    nn.init.zeros_(model.weight)
    sgd = Sgd(model, images=2, batch_size=2, learning_rate=1, momentum=0, generator=torch.Generator())
    sgd.step(torch.ones(2, 3), torch.tensor([0, 0]))
    np.testing.assert_allclose(model.weight.detach()[0], np.full(3, 0.9), rtol=1e-6)
