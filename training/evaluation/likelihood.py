"""Metrics of a VAE's encoder, and of encoder and decoder together: bounds on the likelihood of images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.content.latents import draw_latents, draw_uniforms
from service.models.manifest import MODEL_FILE
from training.datasets.splits import Dataset
from training.errors import EvaluationError
from training.evaluation.metrics import Metrics, kl_divergence, log_likelihood
from training.onnx_files import open_session, run_in_parts

# Draws of z per image in the expectations of the ELBO and of the importance-weighted bound.
IMPORTANCE_SAMPLES = 10

# The seeds of the binary images and, from the second on, of the noise; SAMPLES_SEED is another.
BINARY_SEED, NOISE_SEED = 2, 1000


def encoder_of(decoder: Path) -> Path:
    """The encoder's graph that belongs to a VAE's decoder: <name>-encoder of the same version."""
    version = decoder.parent
    return version.parent.with_name(f"{version.parent.name}-encoder") / version.name / MODEL_FILE


def bound(decoder: Path, test: Dataset) -> Metrics:
    """Bounds on log p(x | y) of binary test images by a VAE's two graphs, in nats.

    The ELBO, its two terms, and the importance-weighted bound, which is tighter (Burda et al. 2016);
    the expectations over z are means of IMPORTANCE_SAMPLES draws. Raises EvaluationError.
    """
    if not encoder_of(decoder).is_file():
        raise EvaluationError(f"{encoder_of(decoder)} is missing: the ELBO of {decoder} needs it")
    images, mean, log_variance = _encode(encoder_of(decoder), test)
    session = open_session(decoder, ["logits"])
    likelihoods, weights = [], []
    for sample in range(IMPORTANCE_SAMPLES):
        noise = draw_latents(NOISE_SEED + sample, *mean.shape)
        z = mean + np.exp(log_variance / 2) * noise
        (logits,) = run_in_parts(session, ["logits"], {"z": z, "label": test.labels})
        likelihoods.append(log_likelihood(logits, images))
        weights.append(likelihoods[-1] + ((noise**2 + log_variance - z**2) / 2).sum(1, dtype=np.float64))
    reconstruction, kl = float(np.mean(likelihoods)), float(kl_divergence(mean, log_variance).mean())
    tighter = np.logaddexp.reduce(weights, axis=0) - np.log(IMPORTANCE_SAMPLES)
    return {
        "test_images": len(test),
        "test_elbo": round(reconstruction - kl, 6),
        "test_reconstruction": round(reconstruction, 6),
        "test_kl": round(kl, 6),
        f"test_iwae_{IMPORTANCE_SAMPLES}": round(float(tighter.mean()), 6),
    }


def encoding(path: Path, test: Dataset) -> Metrics:
    """The metrics of a VAE's encoder alone, on binary test images.

    A unit of z is active if its mean varies over the images by more than 0.01 (Burda et al. 2016).
    """
    _, mean, log_variance = _encode(path, test)
    return {
        "test_images": len(test),
        "test_kl": round(float(kl_divergence(mean, log_variance).mean()), 6),
        "test_active_units": int((mean.var(0) > 0.01).sum()),
    }


def _encode(path: Path, test: Dataset) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Binary images, always the same ones, with the mean and the log-variance of their z."""
    images = draw_uniforms(BINARY_SEED, test.images.size).reshape(test.images.shape) <= test.images / 255
    inputs = {"images": images.astype(np.uint8) * np.uint8(255), "label": test.labels}
    mean, log_variance = run_in_parts(open_session(path), ["mean", "log_variance"], inputs)
    return images, mean, log_variance
