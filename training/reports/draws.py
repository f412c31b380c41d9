"""The command `draws`: the metrics of generators over several draws of their samples.

A manifest's metrics are of one draw. How far they move from draw to draw says which differences mean nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from service.models.manifest import MODEL_FILE, read_manifest
from training.cards.card import titled_table
from training.datasets.splits import Splits
from training.evaluation.epochs import JUDGE
from training.evaluation.generation import SAMPLES_SEED, draw, quality
from training.evaluation.judge import judge_of, recorded_judge
from training.files import write_atomically
from training.reports.latest import latest_versions
from training.terminal import notice

JSON_FILE = "draws.json"

FIGURES = {
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "label_agreement": "read as the digit asked for",
    "worst_label_agreement": "worst digit",
}
"""The metrics that are printed, and their titles."""

Report = Mapping[str, Mapping[str, Sequence[float]]]
"""By model and by metric: its value in each draw."""


def draws(
    names: Sequence[str],
    models_dir: Path,
    splits: Splits,
    on: Literal["validation", "test"],
    count: int,
    output: Path | None,
) -> Report:
    """Measure several draws of each named generator's latest version, or of all; print a table in Markdown.

    A draw has one sample per image, with its label. On the test images the judge is the one that a manifest
    names, and the first draw has the manifest's metrics. On the validation images it is the judge of a
    training's epochs.
    count: how many draws, 2 or more. output: where to write each draw's metrics as JSON too.
    Raises EvaluationError or SourceError.
    """
    folders = latest_versions(names, models_dir, splits, "generation")
    data = splits.test if on == "test" else splits.validation
    report: dict[str, dict[str, list[float]]] = {}
    for name, folder in folders.items():
        if on == "test":
            judge = recorded_judge(read_manifest(folder), models_dir)
        else:
            judge = judge_of(Path(JUDGE), splits)
        reference, _ = judge(data.images)
        measured = []
        for seed in range(SAMPLES_SEED, SAMPLES_SEED + count):
            samples = draw(folder / MODEL_FILE, data.labels, seed)
            measured.append(quality(samples, data.labels, reference, judge))
            notice(f"{name}: {len(measured)} of {count} draws")
        report[name] = {metric: [float(each[metric]) for each in measured] for metric in FIGURES}
    print(draws_table(report))
    if output is not None:
        write_atomically(output, (json.dumps(report, indent=2) + "\n").encode())
    return report


def draws_table(report: Report) -> str:
    """The mean and the standard deviation of each metric, a row for each generator, in Markdown."""
    rows = [
        (f"`{name}`", *(_cell(metric, seen[metric]) for metric in FIGURES)) for name, seen in report.items()
    ]
    return titled_table(["model", *FIGURES.values()], rows)


def _cell(metric: str, values: Sequence[float]) -> str:
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    if metric.endswith("agreement"):
        return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    return f"{mean:.3f} ± {deviation:.3f}"
