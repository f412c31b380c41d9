import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli, Normal, kl_divergence

from service.content.latents import draw_latents, draw_uniforms
from service.models.manifest import read_manifest
from tests.support.tiny_runs import VAE, Interrupted, StoppingRun, Workshop, assert_same_state, new_run
from training.datasets.splits import SIDE
from training.evaluation.likelihood import BINARY_SEED, IMPORTANCE_SAMPLES, NOISE_SEED, encoder_of
from training.families import vae
from training.onnx_files import open_session
from training.runs.finished import load_weights, read_weights
from training.runs.run import BEST_FILE, to_safetensors
from training.versions import Target

PLAIN = dataclasses.replace(VAE, blocks_7=0, blocks_14=0, flow_layers=0)


def random_model(config: vae.Config, seed: int = 0) -> vae.ConditionalVae:
    """A network whose flow, if it has one, is far from the identity."""
    torch.manual_seed(seed)
    model = vae.ConditionalVae(config)
    for weights in model.prior.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> tuple[Path, Path]:
    """The tiny run with a random flow in place of the trained one, and its decoder's folder.

    After 22 steps the trained flow is almost the identity. There is an encoder of version 4 already.
    """
    folder = tmp_path_factory.mktemp("published")
    run_dir, models = folder / "run", folder / "models"
    shutil.copytree(workshop.runs / "vae", run_dir)
    flow = random_model(VAE).prior.state_dict(prefix="prior.")
    (run_dir / BEST_FILE).write_bytes(to_safetensors(read_weights(run_dir) | flow))
    (models / "vae-encoder" / "4").mkdir(parents=True)
    (models / "judge").symlink_to(workshop.models / "judge")
    return run_dir, vae.export("vae", run_dir, workshop.splits, Target(models))


def test_kl_divergence_is_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.kl_divergence(mean, log_variance), expected, rtol=1e-12, atol=1e-12)


def test_log_likelihood_is_that_of_torch_distributions() -> None:
    logits, images = torch.randn(3, 1, SIDE, SIDE).double(), torch.rand(3, 1, SIDE, SIDE).round().double()
    expected = Bernoulli(logits=logits).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(vae.log_likelihood(logits, images), expected, rtol=1e-12, atol=1e-12)


def test_sigma_scales_the_noise_and_not_the_mean() -> None:
    mean, log_variance = torch.tensor([[5.0, -3.0]]), torch.tensor([[math.log(4.0), math.log(0.25)]])
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    z = vae.reparameterise(mean, log_variance, noise)
    # Standard errors are 2 / sqrt(100,000) = 0.006 of the mean and 0.0045 of the deviation.
    torch.testing.assert_close(z.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(z.std(0), torch.tensor([2.0, 0.5]), rtol=0, atol=0.03)


def test_gradient_reaches_mean_and_variance() -> None:
    mean, log_variance = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    vae.reparameterise(mean, log_variance, torch.full((1, 1), 3.0)).sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert (mean.grad.item(), log_variance.grad.item()) == (1.0, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 3])
def test_elbo_falls_short_by_the_divergence_from_the_posterior(layers: int) -> None:
    """With one unit of w both are integrals over a line: log p(x) = ELBO + KL(q || p(w | x))."""
    model = random_model(dataclasses.replace(VAE, latent=1, flow_layers=layers)).double()
    image, label = torch.rand(1, 1, SIDE, SIDE).round().double(), torch.tensor([4])
    w = torch.linspace(-10, 10, 401).double().unsqueeze(1)
    step = 0.05
    mean, log_variance = model.encoder(image, label)
    log_joint = vae.log_likelihood(model.decoder(w, label.expand(401)), image.expand(401, -1, -1, -1))
    z, log_determinant = model.prior.inverse(w, label.expand(401))
    log_joint = log_joint + Normal(0.0, 1.0).log_prob(z).squeeze(1) + log_determinant
    log_evidence = torch.logsumexp(log_joint, 0) + math.log(step)
    log_q = Normal(mean, (log_variance / 2).exp()).log_prob(w).squeeze(1)
    gap = (log_q.exp() * (log_q - (log_joint - log_evidence))).sum() * step
    rows = 1000
    # The networks' terms are float32 in `forward`, whose rounding is far below the error of 1,000 draws.
    noise = torch.randn(rows, 1, generator=torch.Generator().manual_seed(1))
    reconstructions, kl = model(image.expand(rows, -1, -1, -1), label.expand(rows), noise.double())
    elbo = reconstructions - kl
    error = elbo.std().item() / math.sqrt(rows)
    assert gap > 0
    assert elbo.mean().item() + gap.item() == pytest.approx(log_evidence.item(), abs=5 * error)


def test_forward_gives_the_two_terms_of_each_image() -> None:
    model = vae.ConditionalVae(PLAIN)
    images, labels = torch.rand(3, 1, SIDE, SIDE).round(), torch.tensor([0, 1, 2])
    noise = torch.randn(3, VAE.latent)
    reconstruction, kl = model(images, labels, noise)
    mean, log_variance = model.encoder(images, labels)
    logits = model.decoder(mean + (log_variance / 2).exp() * noise, labels)
    torch.testing.assert_close(reconstruction, Bernoulli(logits=logits).log_prob(images).sum((1, 2, 3)))
    torch.testing.assert_close(kl, vae.kl_divergence(mean, log_variance))


def test_divergence_from_a_flow_is_the_ratio_of_the_densities() -> None:
    model = random_model(VAE)
    images, labels = torch.rand(3, 1, SIDE, SIDE).round(), torch.tensor([0, 1, 2])
    noise = torch.randn(3, VAE.latent)
    _, kl = model(images, labels, noise)
    mean, log_variance = model.encoder(images, labels)
    w = vae.reparameterise(mean, log_variance, noise)
    z, log_determinant = model.prior.inverse(w, labels)
    log_q = Normal(mean, (log_variance / 2).exp()).log_prob(w).sum(1)
    torch.testing.assert_close(kl, log_q - Normal(0.0, 1.0).log_prob(z).sum(1) - log_determinant)


def test_divergence_from_an_untrained_flow_is_the_analytic_one() -> None:
    mean, log_variance = torch.tensor([[1.0, -0.5]]), torch.tensor([[-2.0, 0.5]])
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    w = vae.reparameterise(mean, log_variance, noise)
    draws = vae.sampled_divergence(noise, log_variance, w, torch.zeros(len(noise)))
    error = draws.std().item() / math.sqrt(len(noise))
    assert draws.mean().item() == pytest.approx(vae.kl_divergence(mean, log_variance).item(), abs=5 * error)


def test_run_older_than_the_flow_has_the_weights_that_it_had() -> None:
    """Its config.json has neither blocks nor a flow."""
    new = {"blocks_7", "blocks_14", "flow_layers", "flow_hidden"}
    old = {name: value for name, value in dataclasses.asdict(VAE).items() if name not in new}
    model = vae.ConditionalVae(vae.config_of(old))
    layers = {name.rpartition(".")[0] for name in model.state_dict()}
    decoder, encoder = (0, 2, 5, 7, 9), (0, 2)
    assert layers == {
        "encoder.condition",
        "encoder.dense.0",
        "encoder.dense.2",
        "decoder.condition",
        *(f"decoder.body.{index}" for index in decoder),
        *(f"encoder.convolutions.{index}" for index in encoder),
    }
    images = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    mean, log_variance = vae.Encoding(model)(images, torch.tensor([0, 1]))
    assert mean.shape == log_variance.shape == (2, VAE.latent)


def test_untrained_block_changes_nothing_and_learns() -> None:
    block, maps = vae.Block(3), torch.randn(2, 3, 7, 7)
    assert torch.equal(block(maps), maps)
    block(maps).square().sum().backward()
    assert block.body[-1].weight.grad.abs().max() > 0  # type: ignore[union-attr,operator]


def test_pixels_are_ink_with_the_probability_of_their_level() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(40_000, 1)
    binary = vae.binarise(levels, torch.Generator().manual_seed(0))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    shares = binary.mean(0).tolist()
    assert (shares[0], shares[2]) == (0.0, 1.0)
    assert shares[1] == pytest.approx(0.2, abs=0.01)  # five standard errors


def test_weight_of_the_divergence_rises_to_one() -> None:
    assert [vae.kl_weight(step, 100, 0.1) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert vae.kl_weight(1, 100, 0.0) == 1.0


def test_label_outside_the_classes_does_not_fail_the_batch() -> None:
    model = random_model(VAE)
    decoding, encoding = vae.Decoding(model), vae.Encoding(model)
    z, labels = torch.randn(1, VAE.latent).expand(3, -1), torch.tensor([3, -1, 12])
    images, logits = decoding(z, labels)
    torch.testing.assert_close(logits[1], logits[2])
    assert not torch.equal(logits[0], logits[1])
    assert encoding(images, labels)[0].shape == (3, VAE.latent)


def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, workshop: Workshop) -> None:
    cut = new_run(tmp_path, VAE, kind=StoppingRun)
    with pytest.raises(Interrupted):
        vae.train(VAE, workshop.splits, cut)
    vae.train(VAE, workshop.splits, new_run(tmp_path, VAE, resume=True))
    assert_same_state(tmp_path, workshop.runs / "vae")


def test_run_draws_samples_and_reconstructions(workshop: Workshop) -> None:
    samples = np.asarray(Image.open(workshop.runs / "vae" / vae.SAMPLES_FILE))
    pairs = np.asarray(Image.open(workshop.runs / "vae" / vae.RECONSTRUCTIONS_FILE))
    # 20 validation images in two rows, and their reconstructions
    assert (samples.shape, pairs.shape) == ((280, 280), (4 * SIDE, 280))
    first = np.concatenate(list(workshop.splits.validation.images[:10]), axis=1)
    assert np.array_equal(pairs[:SIDE], first)


def test_incomplete_row_of_reconstructions_is_padded(tmp_path: Path) -> None:
    images = np.full((13, SIDE, SIDE), 9, np.uint8)
    vae.save_pairs(images, images, tmp_path / "pairs.png")
    pairs = np.asarray(Image.open(tmp_path / "pairs.png"))
    assert pairs.shape == (4 * SIDE, 280)
    assert (pairs[2 * SIDE :, 3 * SIDE :] == 0).all()


def test_training_raises_the_elbo(tmp_path: Path, workshop: Workshop) -> None:
    config = vae.Config(**{**VAE.__dict__, "epochs": 4, "learning_rate": 0.01})
    run = new_run(tmp_path, config)
    vae.train(config, workshop.splits, run)
    assert run.history[-1]["validation_elbo"] > run.history[0]["validation_elbo"]


def test_decoder_and_encoder_share_a_version(workshop: Workshop) -> None:
    decoder, encoder = (read_manifest(workshop.models / name / "1") for name in ("vae", "vae-encoder"))
    assert (decoder.task, encoder.task) == ("generation", "encoding")
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*encoder.inputs, *encoder.outputs)] == [
        ("images", "UINT8", (-1, SIDE, SIDE)),
        ("label", "INT64", (-1,)),
        ("mean", "FP32", (-1, VAE.latent)),
    ]
    metrics = decoder.metrics
    difference = float(metrics["test_reconstruction"]) - float(metrics["test_kl"])
    assert metrics["test_elbo"] == pytest.approx(difference, abs=1e-5)  # six decimals each
    assert float(metrics["test_iwae_10"]) >= float(metrics["test_elbo"])
    assert encoder.metrics["test_kl"] == metrics["test_kl"]
    for name in (vae.SAMPLES_FILE, vae.RECONSTRUCTIONS_FILE):
        assert np.asarray(Image.open(workshop.models / "vae" / "1" / name)).shape == (280, 280)


def test_published_pair_reconstructs_any_number_of_rows(workshop: Workshop) -> None:
    path = workshop.models / "vae" / "1" / "model.onnx"
    assert [output.name for output in onnx.load(path).graph.output] == ["images"]
    encoder, decoder = open_session(encoder_of(path)), open_session(path, ["logits"])
    images = np.random.default_rng(0).integers(0, 256, (257, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(257)
    for rows in (1, 3, 257):
        (mean,) = encoder.run(None, {"images": images[:rows], "label": labels[:rows]})
        decoded, logits = decoder.run(None, {"z": mean, "label": labels[:rows]})
        assert decoded.shape == (rows, SIDE, SIDE)
        expected = 255 / (1 + np.exp(-logits.astype(np.float64)))
        assert np.abs(decoded - expected).max() <= 0.501  # rounded to a level


def test_encoding_is_the_z_from_which_the_decoder_reconstructs(published: tuple[Path, Path]) -> None:
    run_dir, folder = published
    model = vae.ConditionalVae(VAE)
    load_weights(model, run_dir)
    images = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(20) % 10
    encoder, decoder = (
        open_session(encoder_of(folder / "model.onnx")),
        open_session(folder / "model.onnx", ["logits"]),
    )
    (mean,) = encoder.run(None, {"images": images, "label": labels})
    _, logits = decoder.run(None, {"z": mean, "label": labels})
    with torch.no_grad():
        w, _ = model.encoder(torch.from_numpy(images).unsqueeze(1) / 255, torch.from_numpy(labels))
        expected = model.decoder(w, torch.from_numpy(labels)).squeeze(1)
    assert np.abs(mean - w.numpy()).max() > 0.1
    # Float32 sums of some hundred terms, through the flow and back.
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_bounds_from_the_graphs_are_those_of_the_network(
    published: tuple[Path, Path], workshop: Workshop
) -> None:
    run_dir, folder = published
    model = vae.ConditionalVae(VAE)
    load_weights(model, run_dir)
    test = workshop.splits.test
    binary = draw_uniforms(BINARY_SEED, test.images.size).reshape(test.images.shape) <= test.images / 255
    images, labels = torch.from_numpy(binary).unsqueeze(1).float(), torch.from_numpy(test.labels)
    with torch.no_grad():
        terms = [
            torch.stack(model(images, labels, torch.from_numpy(draw_latents(seed, len(test), VAE.latent))))
            for seed in range(NOISE_SEED, NOISE_SEED + IMPORTANCE_SAMPLES)
        ]
    reconstructions, divergences = torch.stack(terms, 1)
    tighter = torch.logsumexp(reconstructions - divergences, 0) - math.log(IMPORTANCE_SAMPLES)
    expected = {
        "test_elbo": (reconstructions - divergences).mean().item(),
        "test_reconstruction": reconstructions.mean().item(),
        "test_kl": divergences.mean().item(),
        "test_iwae_10": tighter.mean().item(),
    }
    metrics = read_manifest(folder).metrics
    # Sums of 784 float32 terms of up to 10.
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert read_manifest(encoder_of(folder / "model.onnx").parent).metrics["test_kl"] == metrics["test_kl"]


def test_version_of_the_encoder_blocks_the_decoders(published: tuple[Path, Path]) -> None:
    _, folder = published
    models = folder.parent.parent
    assert folder == models / "vae" / "5"
    assert (models / "vae-encoder" / "5" / "manifest.json").is_file()
