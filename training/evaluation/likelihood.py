"""Metrics of a VAE's encoder, and of encoder and decoder together: bounds on the likelihood of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from service.content.latents import draw_latents, draw_uniforms
from service.models.manifest import MODEL_FILE
from training.datasets.splits import Dataset
from training.errors import EvaluationError
from training.evaluation.metrics import Metrics, kl_divergence, log_likelihood
from training.onnx_files import open_part, open_session, run_in_parts

# Draws of z per image in the expectations of the ELBO and of the importance-weighted bound.
IMPORTANCE_SAMPLES = 10

# The inner tensors of an encoder's graph that has a flow: q(w | x, y), and the logarithm of |dz / dw|.
W_MEAN, W_LOG_VARIANCE, LOG_DETERMINANT = "w_mean", "w_log_variance", "log_determinant"

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
    images = _binary(test)
    posterior = Posterior(encoder_of(decoder), images, test.labels)
    session = open_session(decoder, ["logits"])
    likelihoods, divergences = [], []
    for sample in range(IMPORTANCE_SAMPLES):
        z, divergence = posterior.draw(NOISE_SEED + sample)
        (logits,) = run_in_parts(session, ["logits"], {"z": z, "label": test.labels})
        likelihoods.append(log_likelihood(logits, images))
        divergences.append(divergence)
    reconstruction = float(np.mean(likelihoods))
    kl = posterior.kl(divergences)
    weights = np.array(likelihoods) - np.array(divergences)
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
    posterior = Posterior(path, _binary(test), test.labels)
    divergences = [posterior.draw(NOISE_SEED + sample)[1] for sample in range(IMPORTANCE_SAMPLES)]
    return {
        "test_images": len(test),
        "test_kl": round(posterior.kl(divergences), 6),
        "test_active_units": int((posterior.mean.var(0) > 0.01).sum()),
    }


def _binary(test: Dataset) -> NDArray[np.bool_]:
    """Binary images, always the same ones."""
    return draw_uniforms(BINARY_SEED, test.images.size).reshape(test.images.shape) <= test.images / 255


class Posterior:
    """q(z | x, y) of binary images (n, 28, 28) bool and labels (n,) int64, from an encoder's graph.

    It is a diagonal Gaussian, or what a flow makes of one: then the graph has the Gaussian's parameters as
    inner tensors, and its nodes after the mean of w are the flow from w to z.
    mean: what the graph gives out under this name, (n, latent) float32.
    """

    def __init__(self, path: Path, images: NDArray[np.bool_], labels: NDArray[np.int64]) -> None:
        graph = onnx.load(path)
        flows = any(W_MEAN in node.output for node in graph.graph.node)
        inner = [W_MEAN, W_LOG_VARIANCE] if flows else ["mean", "log_variance"]
        session = open_session(path, inner if flows else [])
        inputs = {"images": images.astype(np.uint8) * np.uint8(255), "label": labels}
        self.mean, self._centre, self._log_variance = run_in_parts(session, ["mean", *inner], inputs)
        self._labels = labels
        self._flow = open_part(graph, [W_MEAN, "label"], ["mean", LOG_DETERMINANT]) if flows else None

    def draw(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """A z for each image, (n, latent), and ln q(z | x, y) - ln N(z; 0, 1), (n,)."""
        noise = draw_latents(seed, *self._centre.shape)
        z = self._centre + np.exp(self._log_variance / 2) * noise
        log_determinant: NDArray[np.float32] | float = 0.0
        if self._flow is not None:
            names = ["mean", LOG_DETERMINANT]
            z, log_determinant = run_in_parts(self._flow, names, {W_MEAN: z, "label": self._labels})
        terms = (z**2 - noise**2 - self._log_variance) / 2
        return z, terms.sum(1, dtype=np.float64) - log_determinant

    def kl(self, divergences: Sequence[NDArray[np.float64]]) -> float:
        """KL(q || N(0, 1)), in nats, the mean over the images: of Gaussians exactly, else of these draws."""
        if self._flow is not None:
            return float(np.mean(divergences))
        return float(kl_divergence(self._centre, self._log_variance).mean())
