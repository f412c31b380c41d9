"""The command `robustness`: the accuracy of classifiers on corrupted images, and their calibration."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.models.folder import CARD_FILE
from service.models.manifest import MODEL_FILE
from service.models.signatures import SIGNATURE_FILE
from training.cards.card import fill_page, table, titled_table, with_section
from training.datasets.splits import Dataset, Splits
from training.errors import EvaluationError
from training.evaluation.classification import readings
from training.evaluation.corruptions import CORRUPTIONS, corrupted
from training.evaluation.metrics import calibration_error, negative_log_likelihood
from training.evaluation.temperature import best_temperature, tempered
from training.files import write_atomically
from training.provenance.bom import update_bom
from training.reports.latest import latest_versions

CLEAN = "clean"

Report = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By model and then by corruption (or `clean`): accuracy and ece; `temperature` has its own entries."""


def robustness(
    names: Sequence[str],
    models_dir: Path,
    splits: Splits,
    on: Literal["validation", "test"],
    output: Path | None,
    cards: bool = False,
) -> Report:
    """Measure the latest version of each named classifier, or of all, and print two tables in Markdown.

    output: where to write the figures as JSON too. cards: write them into the models' cards too.
    Raises EvaluationError or SourceError.
    """
    folders = latest_versions(names, models_dir, splits, "classification")
    signed = sorted(
        str(folder) for folder in folders.values() if cards and (folder / SIGNATURE_FILE).exists()
    )
    if signed:
        raise EvaluationError(f"{', '.join(signed)}: signed, so the card cannot change; sign after --cards")
    data = splits.validation if on == "validation" else splits.test
    images = {CLEAN: data.images} | {name: corrupted(data.images, name) for name in CORRUPTIONS}
    report = {
        name: _measure(folder / MODEL_FILE, images, data.labels, splits.validation)
        for name, folder in folders.items()
    }
    print(f"{accuracy_table(report)}\n\n{calibration_table(report)}")
    if output is not None:
        write_atomically(output, (json.dumps(report, indent=2) + "\n").encode())
    for name, folder in folders.items() if cards else ():
        card = folder / CARD_FILE
        page = with_section(card.read_text(), card_section(name, report[name], on, len(data)))
        write_atomically(card, page.encode())
        update_bom(folder)
    return report


def card_section(name: str, seen: Mapping[str, Mapping[str, float]], on: str, count: int) -> str:
    """The section of a model's card on corrupted images. seen: its figures by kind; count: images of each."""
    rows: list[Sequence[object]] = [
        (kind.replace("_", " "), f"{seen[kind]['accuracy']:.4f}", f"{seen[kind]['ece']:.4f}")
        for kind in CORRUPTIONS
    ]
    means = (np.mean([seen[kind][metric] for kind in CORRUPTIONS]) for metric in ("accuracy", "ece"))
    rows.append(("mean of the 15", *(f"{mean:.4f}" for mean in means)))
    return fill_page("corrupted", name=name, on=on, count=count, rows=table(rows))


def accuracy_table(report: Report) -> str:
    """The accuracy on each kind of corrupted image in per cent, a row for each kind, in Markdown."""
    kinds = [CLEAN, *CORRUPTIONS]
    rows: list[Sequence[object]] = [
        (kind.replace("_", " "), *(f"{100 * seen[kind]['accuracy']:.2f}" for seen in report.values()))
        for kind in kinds
    ]
    means = (np.mean([seen[kind]["accuracy"] for kind in CORRUPTIONS]) for seen in report.values())
    rows.append(("mean of the 15", *(f"{100 * mean:.2f}" for mean in means)))
    return titled_table(["images", *(f"`{name}`" for name in report)], rows)


def calibration_table(report: Report) -> str:
    """Each classifier's calibration on clean and on corrupted images, in Markdown."""
    rows = [
        (
            f"`{name}`",
            f"{seen[CLEAN]['ece']:.4f}",
            f"{seen['temperature']['value']:.3f}",
            f"{seen['temperature']['ece']:.4f}",
            f"{seen['temperature']['nll_before']:.4f}",
            f"{seen['temperature']['nll']:.4f}",
            f"{np.mean([seen[kind]['ece'] for kind in CORRUPTIONS]):.3f}",
        )
        for name, seen in report.items()
    ]
    heads = ["model", "ECE", "temperature", "ECE with it", "NLL", "NLL with it", "ECE, mean of the 15"]
    return titled_table(heads, rows)


def _measure(
    path: Path, images: Mapping[str, NDArray[np.uint8]], labels: NDArray[np.int64], validation: Dataset
) -> dict[str, dict[str, float]]:
    seen = {kind: readings(path, Dataset(some, labels)) for kind, some in images.items()}
    measured = {
        kind: {
            "accuracy": round(float(each.correct.mean()), 6),
            "ece": round(calibration_error(each.probabilities, labels), 6),
        }
        for kind, each in seen.items()
    }
    temperature = best_temperature(readings(path, validation).probabilities, validation.labels)
    cooled = tempered(seen[CLEAN].probabilities, temperature)
    measured["temperature"] = {
        "value": round(temperature, 4),
        "ece": round(calibration_error(cooled, labels), 6),
        "nll_before": round(negative_log_likelihood(seen[CLEAN].probabilities, labels), 6),
        "nll": round(negative_log_likelihood(cooled, labels), 6),
    }
    return measured
