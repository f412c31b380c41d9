"""docs/models.md holds the tables of the figures that are committed next to it, of the shipped models."""

import json
from pathlib import Path

import pytest

from service.models.manifest import FP16_SUFFIX
from training.evaluation.corruptions import CORRUPTIONS
from training.reports import draws, pareto, robustness

DOCS = Path(__file__).parents[3] / "docs"
MODELS = DOCS.parent / "models"
PAGE = (DOCS / "models.md").read_text()


def classifiers() -> dict[str, float]:
    """The accuracies of all classifiers but those in float16, which are for GPUs."""
    manifests = [json.loads(path.read_text()) for path in MODELS.glob("*/*/manifest.json")]
    return {
        each["name"]: each["metrics"]["test_accuracy"]
        for each in manifests
        if each["task"] == "classification" and not each["name"].endswith(FP16_SUFFIX)
    }


def test_the_page_has_the_table_of_costs_of_the_shipped_models() -> None:
    content = json.loads((DOCS / "models" / pareto.JSON_FILE).read_text())
    points = [
        pareto.Point(
            each["name"],
            each["accuracy"],
            each["size"],
            {int(batch): cost for batch, cost in each["microseconds"].items()},
        )
        for each in content["points"]
    ]
    assert {point.name: point.accuracy for point in points} == classifiers()
    for point in points:
        (graph,) = (MODELS / point.name).glob("*/model.onnx")
        assert graph.stat().st_size == point.size
    assert pareto.table(points) in PAGE
    assert content["cpu"].rpartition("(")[2] in " ".join(PAGE.split())


def test_the_page_has_the_tables_of_robustness_of_the_shipped_models() -> None:
    report = json.loads((DOCS / "models" / "robustness.json").read_text())
    assert {name: seen["clean"]["accuracy"] for name, seen in report.items()} == classifiers()
    assert all({*seen} == {"clean", "temperature", *CORRUPTIONS} for seen in report.values())
    assert robustness.accuracy_table(report) in PAGE
    assert robustness.calibration_table(report) in PAGE
    for name, seen in report.items():
        (card,) = (MODELS / name).glob("*/README.md")
        assert robustness.card_section(name, seen, "test", 10_000) in card.read_text()


def test_the_page_has_the_figures_of_the_shipped_generators() -> None:
    for path in MODELS.glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["task"] == "generation":
            row = generator_row(f"`{manifest['name']}`", manifest["metrics"])
            assert f"| {row} | {manifest['metrics']['multiply_adds']:,} |" in PAGE
            assert generator_row("real images", manifest["metrics"], "real_") in PAGE


def test_the_page_has_the_table_of_draws_of_the_shipped_generators() -> None:
    report = json.loads((DOCS / "models" / draws.JSON_FILE).read_text())
    for path in MODELS.glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        name, for_gpus = manifest["name"], manifest["name"].endswith(FP16_SUFFIX)
        assert (name in report) == (manifest["task"] == "generation" and not for_gpus)
        for metric, values in report.get(name, {}).items():
            assert values[0] == pytest.approx(manifest["metrics"][metric], abs=1e-4)
    assert draws.draws_table(report) in PAGE


def generator_row(label: str, metrics: dict[str, float], prefix: str = "") -> str:
    near = [f"{metrics[prefix + name]:.2f}" for name in ("frechet_distance", "precision", "recall")]
    read = [f"{100 * metrics[prefix + name]:.2f} %" for name in ("label_agreement", "worst_label_agreement")]
    return " | ".join([label, *near, *read])
