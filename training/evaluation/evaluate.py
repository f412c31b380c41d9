"""Metrics of exported models, measured from model.onnx alone with onnxruntime on the CPU.

`classification`, `generation`, `bound` and `encoding` are also what export writes into the manifest,
so that a manifest's numbers and a later evaluation come from the same code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest, sha256_of
from training.data.splits import Dataset, Splits
from training.export.publish import open_session, run_in_parts
from training.families.grids import frechet_distance, normals, precision_recall, uniforms

Metrics = dict[str, float | int | str]

# Kernels differ from one CPU to another in the last bits of a float32 sum, which can move an image
# across a decision; counts may differ by one, other numbers by 1e-4 and 1e-4 of their size.
COUNT_TOLERANCE = 1
TOLERANCE = 1e-4
# A difference of two accuracies, of which each may move by TOLERANCE, in points of 100.
POINTS_TOLERANCE = 0.02

CALIBRATION_BINS = 15

# The model that judges generated images.
JUDGE = "cnn"
# Precision and recall compare all pairs: of 5,000 images they take 100 MB and a second.
NEIGHBOUR_ROWS = 5000
IMPORTANCE_SAMPLES = 10

# Of the z of samples, of binary images, and of the noise of the ELBO: no two share their numbers.
SAMPLES_SEED, BINARY_SEED, NOISE_SEED = 1, 2, 1000


class EvaluationError(Exception):
    """The model cannot be evaluated on this data; the message says why."""


class Judge:
    """The CNN, which says what generated images show: it was trained on the same data.

    identity: its name, version and the first digits of its SHA-256, as metrics.
    """

    def __init__(self, folder: Path) -> None:
        manifest = verified(folder)
        self.identity: Metrics = {
            "classifier": f"{manifest.name}/{manifest.version}",
            "classifier_digest": manifest.sha256[:12],
        }
        self._session = open_session(folder / MODEL_FILE, ["features"])

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features (n, d) and the most probable labels (n,) of images (n, 28, 28)."""
        names = ["features", "probabilities"]
        features, probabilities = run_in_parts(self._session, names, {"images": images})
        return features, probabilities.argmax(1)


def latest_judge(models_dir: Path, splits: Splits) -> Judge:
    """The highest version of the CNN that belongs to this data. Raises EvaluationError."""
    manifests = [read_manifest(path.parent) for path in models_dir.glob(f"{JUDGE}/[0-9]*/{MANIFEST_FILE}")]
    versions = [each.version for each in manifests if each.metrics.get("data_digest") == splits.digest]
    if not versions:
        raise EvaluationError(
            f"{models_dir / JUDGE} holds no version trained on {splits.name} (digest {splits.digest}), "
            f"which judges generated images: first run python -m training train {JUDGE} and "
            f"python -m training export {JUDGE}, with the same --data-dir and --models-dir"
        )
    return Judge(models_dir / JUDGE / str(max(versions)))


def measure(manifest: Manifest, folder: Path, splits: Splits, models_dir: Path) -> Metrics:
    """Every metric of a version's manifest, measured again. The one place that tells the tasks apart.

    A generator is judged by the version of the CNN that judged it first. Raises EvaluationError.
    """
    path = folder / MODEL_FILE
    if "source" in manifest.metrics:
        return quantization(path, models_dir / str(manifest.metrics["source"]), splits.test)
    if manifest.task == "classification":
        return classification(path, splits.test)
    if manifest.task == "encoding":
        return encoding(path, splits.test)
    judge = models_dir / str(manifest.metrics.get("classifier", JUDGE))
    if not (judge / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{judge}, which judged {folder}, is missing")
    metrics = generation(path, splits, Judge(judge))
    return metrics | bound(path, splits.test) if "test_elbo" in manifest.metrics else metrics


def classification(path: Path, test: Dataset) -> Metrics:
    """The metrics of a classifier on a test set."""
    (probabilities,) = run_in_parts(open_session(path), ["probabilities"], {"images": test.images})
    correct = probabilities.argmax(1) == test.labels
    return {
        "test_images": len(test),
        "test_accuracy": round(float(correct.mean()), 6),
        "test_errors": int((~correct).sum()),
        "test_nll": round(negative_log_likelihood(probabilities, test.labels), 6),
        "test_ece": round(calibration_error(probabilities, test.labels), 6),
        "test_brier": round(brier_score(probabilities, test.labels), 6),
        "test_worst_recall": round(worst_recall(probabilities, test.labels), 6),
    }


def quantization(path: Path, source: Path, test: Dataset) -> Metrics:
    """The metrics of a quantised classifier: its own, and what it lost against the version it is made from.

    source: that version's folder. Raises EvaluationError if it is missing or changed.
    """
    if not (source / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{source}, from which {path} was made, is missing")
    manifest = verified(source)
    before, after = (
        run_in_parts(open_session(graph), ["probabilities"], {"images": test.images})[0].argmax(1)
        for graph in (source / MODEL_FILE, path)
    )
    loss = 100 * float((before == test.labels).mean() - (after == test.labels).mean())
    return classification(path, test) | {
        "source": f"{manifest.name}/{manifest.version}",
        "source_sha256": manifest.sha256,
        "source_agreement": round(float((before == after).mean()), 6),
        "accuracy_loss_points": round(loss, 4),
    }


def negative_log_likelihood(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean of -ln p(label), in nats; a probability of 0 counts as float32's smallest."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error, over bins of equal width in confidence (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean squared distance of the probabilities from the one-hot labels (Brier 1950); 0 to 2."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def worst_recall(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The share of its images that the worst recognised class gets right."""
    correct = probabilities.argmax(axis=1) == labels
    return min(float(correct[labels == label].mean()) for label in np.unique(labels))


def generation(path: Path, splits: Splits, judge: Judge) -> Metrics:
    """The metrics of a generator's samples: one for each test image, of its label.

    The names that begin with `real` are those of as many training images in place of the samples:
    what a perfect generator would get, for such numbers are never 0 and 1. (The CNN has seen these
    images in training, so its agreement with their labels is that of a training set.)
    """
    reference, _ = judge(splits.test.images)
    labels = splits.test.labels
    metrics = _quality(draw(path, labels), labels, reference, judge, "")
    rows = spread(len(splits.train), len(labels))
    real = _quality(splits.train.images[rows], splits.train.labels[rows], reference, judge, "real_")
    return {"samples": len(labels)} | metrics | real | judge.identity


def _quality(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    reference: NDArray[np.float32],
    judge: Judge,
    prefix: str,
) -> Metrics:
    features, seen = judge(images)
    precision, recall = precision_recall(
        reference[spread(len(reference), NEIGHBOUR_ROWS)], features[spread(len(features), NEIGHBOUR_ROWS)]
    )
    return {
        f"{prefix}frechet_distance": round(frechet_distance(features, reference), 6),
        f"{prefix}precision": round(precision, 6),
        f"{prefix}recall": round(recall, 6),
        f"{prefix}label_agreement": round(float((seen == labels).mean()), 6),
    }


def draw(path: Path, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Samples of a generator's graph, one for each label, always from the same z: (n, 28, 28)."""
    session = open_session(path)
    size = next(each.shape[1] for each in session.get_inputs() if each.name == "z")
    z = normals(SAMPLES_SEED, (len(labels), size))
    images: NDArray[np.uint8]
    (images,) = run_in_parts(session, ["images"], {"z": z, "label": labels})
    return images


def spread(rows: int, count: int) -> NDArray[np.int64]:
    """Row numbers, `count` of them if there are so many, evenly spread: MNIST's first half is easier."""
    return np.arange(min(rows, count)) * rows // min(rows, count)


def encoder_of(decoder: Path) -> Path:
    """The encoder's graph that belongs to a VAE's: of `<name>-encoder`, in the same version."""
    version = decoder.parent
    return version.parent.with_name(f"{version.parent.name}-encoder") / version.name / MODEL_FILE


def bound(decoder: Path, test: Dataset) -> Metrics:
    """What a VAE's two graphs say of log p(x | y) of binary test images, in nats.

    The ELBO, its two terms, and the importance-weighted bound, which is tighter (Burda et al. 2016);
    the expectations over z are means of IMPORTANCE_SAMPLES draws. Raises EvaluationError.
    """
    if not encoder_of(decoder).is_file():
        raise EvaluationError(f"{encoder_of(decoder)} is missing: the ELBO of {decoder} needs it")
    images, mean, log_variance = _encode(encoder_of(decoder), test)
    session = open_session(decoder, ["logits"])
    likelihoods, weights = [], []
    for sample in range(IMPORTANCE_SAMPLES):
        noise = normals(NOISE_SEED + sample, mean.shape)
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
    """Binary images, always the same ones, and the mean and log-variance of their z."""
    images = uniforms(BINARY_SEED, test.images.shape) <= test.images / 255
    inputs = {"images": images.astype(np.uint8) * np.uint8(255), "label": test.labels}
    mean, log_variance = run_in_parts(open_session(path), ["mean", "log_variance"], inputs)
    return images, mean, log_variance


def log_likelihood(logits: NDArray[np.float32], images: NDArray[np.bool_]) -> NDArray[np.float64]:
    """log p(x | z, y) of binary images under independent Bernoulli pixels, (n,), in nats."""
    nats: NDArray[np.float64] = np.logaddexp(0, np.where(images, -logits, logits)).sum((1, 2), np.float64)
    return -nats


def kl_divergence(mean: NDArray[np.float32], log_variance: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), (n,), in nats."""
    terms = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    nats: NDArray[np.float64] = terms.sum(1, dtype=np.float64)
    return nats


def evaluate(names: Sequence[str], models_dir: Path, splits: Splits) -> bool:
    """Measure every version of the named models, or of all, and print a table; whether all agree.

    Raises EvaluationError if there is nothing to measure, or not with this data.
    """
    agreements = [_evaluate_version(folder, models_dir, splits) for folder in _versions(names, models_dir)]
    return all(agreements)


def differences(recorded: Mapping[str, float | int | str], seen: Mapping[str, float | int | str]) -> set[str]:
    """The names of the metrics that differ by more than the tolerance, or are on one side only."""
    return {name for name in {*recorded, *seen} if not _agree(name, recorded.get(name), seen.get(name))}


def _agree(name: str, recorded: float | int | str | None, seen: float | int | str | None) -> bool:
    if isinstance(recorded, int) and isinstance(seen, int):
        return abs(seen - recorded) <= COUNT_TOLERANCE
    if isinstance(recorded, (int, float)) and isinstance(seen, (int, float)):
        tolerance = POINTS_TOLERANCE if name.endswith("_points") else TOLERANCE
        return abs(seen - recorded) <= tolerance + TOLERANCE * abs(recorded)
    return recorded == seen


def verified(folder: Path) -> Manifest:
    """The manifest of a version whose graph has the SHA-256 that it names."""
    manifest = read_manifest(folder)
    digest = sha256_of(folder / MODEL_FILE)
    if digest != manifest.sha256:
        raise EvaluationError(
            f"{folder / MODEL_FILE}: SHA-256 is {digest}, expected {manifest.sha256} ({MANIFEST_FILE})"
        )
    return manifest


def _evaluate_version(folder: Path, models_dir: Path, splits: Splits) -> bool:
    manifest = verified(folder)
    recorded = dict(manifest.metrics)
    data, data_digest = recorded.pop("data", "unknown"), recorded.pop("data_digest", "")
    if data_digest != splits.digest:
        raise EvaluationError(
            f"{folder} was measured on {data}, digest {data_digest}, "
            f"but the data given is {splits.name}, digest {splits.digest}"
        )
    seen = measure(manifest, folder, splits, models_dir)
    wrong = differences(recorded, seen)
    for name in sorted({*recorded, *seen}):
        mark = "DIFFERS" if name in wrong else "ok"
        model = f"{manifest.name}/{manifest.version}"
        print(f"{model:<14} {name:<21} {recorded.get(name, '-')!s:>14} {seen.get(name, '-')!s:>14}  {mark}")
    return not wrong


def _versions(names: Sequence[str], models_dir: Path) -> list[Path]:
    found = sorted(path.parent for path in models_dir.glob(f"[!._]*/[0-9]*/{MANIFEST_FILE}"))
    for name in names:
        if not any(folder.parent.name == name for folder in found):
            raise EvaluationError(f"{models_dir / name} holds no version with a {MANIFEST_FILE}")
    chosen = [folder for folder in found if not names or folder.parent.name in names]
    if not chosen:
        raise EvaluationError(f"{models_dir} holds no model")
    print(f"{'model':<14} {'metric':<21} {'manifest':>14} {'seen':>14}")
    return chosen
