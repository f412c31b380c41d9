"""The command `outliers`: what classifiers with an `ood_score` abstain from, and what that is worth."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from service.models.manifest import MODEL_FILE, OOD_SCORE
from training.cards.card import titled_table
from training.confidence.outliers import outliers
from training.datasets.splits import Splits
from training.errors import EvaluationError
from training.evaluation.abstention import abstained, auroc
from training.figures import new_figure, save_figure
from training.files import write_atomically
from training.onnx_files import open_session, run_in_parts
from training.reports.latest import latest_versions
from training.temperature_scaling import PROBABILITIES
from training.versions import read_verified

JSON_FILE = "outliers.json"
PICTURE_FILE = "risk.png"
SEED = 1
"""Other letters, shapes and noise than those by which a score's rank was chosen."""

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
RISK_MODEL = "cnn"
"""The model of the picture, if it is measured."""

Floats = NDArray[np.float32]


class Kind(TypedDict):
    """One kind of outlier. probability_auroc: of 1 - the largest probability, in place of the score."""

    auroc: float
    probability_auroc: float
    abstained: float


class Measured(TypedDict):
    """One model. digits: the fraction of test digits that abstain; their error rates with and without these.

    score_risk, probability_risk: at each of COVERAGES, over digits and as many of Fashion-MNIST's images.
    """

    digits: float
    error_rate: float
    kept_error_rate: float
    kinds: dict[str, Kind]
    score_risk: list[float]
    probability_risk: list[float]


Report = Mapping[str, Measured]


def report(names: Sequence[str], models_dir: Path, splits: Splits, fashion: Splits, folder: Path) -> Report:
    """Measure the named classifiers, or all that have a threshold, on test images; print two tables.

    folder: for outliers.json and risk.png. Raises EvaluationError or SourceError.
    """
    strange = outliers(fashion.test, splits.test, SEED)
    measured = {
        name: _measure(version, splits, strange)
        for name, version in latest_versions(names, models_dir, splits, "classification").items()
        if names or read_verified(version).abstain_above is not None
    }
    if not measured:
        raise EvaluationError(f"no classifier in {models_dir} has a threshold (abstain_above)")
    print(f"{auroc_table(measured)}\n\n{abstention_table(measured)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JSON_FILE, (json.dumps(measured, indent=2) + "\n").encode())
    _draw(measured, folder / PICTURE_FILE)
    return measured


def auroc_table(measured: Report) -> str:
    """AUROC of each score by kind, and that of the largest probability in brackets, in Markdown."""
    kinds = next(iter(measured.values()))["kinds"]
    rows = [
        (
            kind,
            *(
                f"{seen['kinds'][kind]['auroc']:.4f} ({seen['kinds'][kind]['probability_auroc']:.4f})"
                for seen in measured.values()
            ),
        )
        for kind in kinds
    ]
    return titled_table(["images", *(f"`{name}`" for name in measured)], rows)


def abstention_table(measured: Report) -> str:
    """The fraction of the images of each kind that each model abstains from, in per cent, in Markdown."""
    kinds = next(iter(measured.values()))["kinds"]
    rows: list[Sequence[object]] = [
        ("digits", *(f"{100 * seen['digits']:.2f}" for seen in measured.values())),
        *(
            (kind, *(f"{100 * seen['kinds'][kind]['abstained']:.2f}" for seen in measured.values()))
            for kind in kinds
        ),
        ("error rate on digits", *(f"{100 * seen['error_rate']:.2f}" for seen in measured.values())),
        (
            "error rate on the digits kept",
            *(f"{100 * seen['kept_error_rate']:.2f}" for seen in measured.values()),
        ),
    ]
    return titled_table(["images", *(f"`{name}`" for name in measured)], rows)


def risks(doubts: NDArray[np.float64], wrong: NDArray[np.bool_]) -> list[float]:
    """The error rate among the least doubtful answers, at each of COVERAGES. doubts, wrong: (n,)."""
    errors = np.cumsum(wrong[np.argsort(doubts, kind="stable")])
    counts = [max(1, round(coverage * len(wrong))) for coverage in COVERAGES]
    return [round(float(errors[count - 1] / count), 6) for count in counts]


def _measure(version: Path, splits: Splits, strange: Mapping[str, NDArray[np.uint8]]) -> Measured:
    manifest = read_verified(version)
    limit = manifest.abstain_above
    if limit is None:
        raise EvaluationError(f"{version} has no threshold (abstain_above): python -m training confidence")
    session = open_session(version / MODEL_FILE)

    def run(images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        probabilities, scores = run_in_parts(session, [PROBABILITIES, OOD_SCORE], {"images": images})
        return probabilities, scores

    probabilities, inside = run(splits.test.images)
    wrong = probabilities.argmax(1) != splits.test.labels
    unsure = 1 - probabilities.max(1)
    seen = {kind: run(images) for kind, images in strange.items()}
    kept = inside <= limit
    fashion_probabilities, fashion_scores = (array[: len(wrong)] for array in seen["fashion"])
    all_wrong = np.concatenate([wrong, np.ones(len(fashion_scores), bool)])
    return {
        "digits": round(abstained(inside, limit), 6),
        "error_rate": round(float(wrong.mean()), 6),
        "kept_error_rate": round(float(wrong[kept].mean()), 6),
        "kinds": {
            kind: {
                "auroc": round(auroc(inside, scores), 6),
                "probability_auroc": round(auroc(unsure, 1 - each.max(1)), 6),
                "abstained": round(abstained(scores, limit), 6),
            }
            for kind, (each, scores) in seen.items()
        },
        "score_risk": risks(np.concatenate([inside, fashion_scores]).astype(np.float64), all_wrong),
        "probability_risk": risks(
            np.concatenate([unsure, 1 - fashion_probabilities.max(1)]).astype(np.float64), all_wrong
        ),
    }


def _draw(measured: Report, path: Path) -> None:
    """Draw the risk-coverage curves of one model."""
    name = RISK_MODEL if RISK_MODEL in measured else next(iter(measured))
    figure, axis = new_figure(figsize=(7, 4))
    for risk, label in (("probability_risk", "largest probability"), ("score_risk", "ood_score")):
        axis.plot(
            [100 * each for each in COVERAGES],
            [100 * each for each in measured[name][risk]],  # type: ignore[literal-required]
            marker=".",
            label=f"ordered by {label}",
        )
    axis.set(
        xlabel="coverage: images that are answered, %",
        ylabel="risk: wrong answers among them, %",
        title=f"{name}, MNIST's test digits and as many images of Fashion-MNIST",
    )
    axis.legend()
    save_figure(figure, path, dpi=100)
