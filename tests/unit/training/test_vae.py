import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli, Normal, kl_divergence

from service.models.manifest import read_manifest
from tests.support.tiny_runs import VAE, Interrupted, StoppingRun, Workshop, assert_same_state, new_run
from training.datasets.splits import SIDE
from training.evaluation.likelihood import encoder_of
from training.families import vae
from training.onnx_files import open_session
from training.versions import Target


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


def test_elbo_falls_short_by_the_divergence_from_the_posterior() -> None:
    """With one unit of z both are integrals over a line: log p(x) = ELBO + KL(q || p(z | x))."""
    torch.manual_seed(0)
    config = vae.Config(**{**VAE.__dict__, "latent": 1})
    model = vae.ConditionalVae(config).double()
    image, label = torch.rand(1, 1, SIDE, SIDE).round().double(), torch.tensor([4])
    z = torch.linspace(-10, 10, 401).double().unsqueeze(1)
    step = 0.05
    with torch.no_grad():
        mean, log_variance = model.encoder(image, label)
        log_joint = vae.log_likelihood(model.decoder(z, label.expand(401)), image.expand(401, -1, -1, -1))
        log_joint = log_joint + Normal(0.0, 1.0).log_prob(z).squeeze(1)
        log_evidence = torch.logsumexp(log_joint, 0) + math.log(step)
        log_q = Normal(mean, (log_variance / 2).exp()).log_prob(z).squeeze(1)
        gap = (log_q.exp() * (log_q - (log_joint - log_evidence))).sum() * step
        rows = 1000
        noise = torch.randn(rows, 1, generator=torch.Generator().manual_seed(1)).double()
        reconstructions = vae.log_likelihood(
            model.decoder(vae.reparameterise(mean, log_variance, noise), label.expand(rows)),
            image.expand(rows, -1, -1, -1),
        )
        _, kl = model(image, label, noise[:1])
        elbo = reconstructions.mean() - kl.item()
        error = reconstructions.std().item() / math.sqrt(rows)
    assert gap > 0
    assert elbo.item() + gap.item() == pytest.approx(log_evidence.item(), abs=5 * error)


def test_forward_gives_the_two_terms_of_each_image() -> None:
    model = vae.ConditionalVae(VAE)
    images, labels = torch.rand(3, 1, SIDE, SIDE).round(), torch.tensor([0, 1, 2])
    noise = torch.randn(3, VAE.latent)
    reconstruction, kl = model(images, labels, noise)
    mean, log_variance = model.encoder(images, labels)
    logits = model.decoder(mean + (log_variance / 2).exp() * noise, labels)
    torch.testing.assert_close(reconstruction, Bernoulli(logits=logits).log_prob(images).sum((1, 2, 3)))
    torch.testing.assert_close(kl, vae.kl_divergence(mean, log_variance))


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
    decoding, encoding = vae.Decoding(vae.Decoder(VAE)), vae.Encoding(vae.Encoder(VAE))
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
        ("log_variance", "FP32", (-1, VAE.latent)),
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
        mean, _ = encoder.run(None, {"images": images[:rows], "label": labels[:rows]})
        decoded, logits = decoder.run(None, {"z": mean, "label": labels[:rows]})
        assert decoded.shape == (rows, SIDE, SIDE)
        expected = 255 / (1 + np.exp(-logits.astype(np.float64)))
        assert np.abs(decoded - expected).max() <= 0.501  # rounded to a level


def test_version_of_the_encoder_blocks_the_decoders(tmp_path: Path, workshop: Workshop) -> None:
    (tmp_path / "judge").symlink_to(workshop.models / "judge")
    (tmp_path / "vae-encoder" / "4").mkdir(parents=True)
    folder = vae.export("vae", workshop.runs / "vae", workshop.splits, Target(tmp_path))
    assert folder == tmp_path / "vae" / "5"
    assert (tmp_path / "vae-encoder" / "5" / "manifest.json").is_file()
