"""docs/confidence.md holds the tables of the figures that are committed next to it, of the shipped models."""

import json
from pathlib import Path

from service.models.manifest import FP16_SUFFIX
from training.reports import outliers

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "confidence.md").read_text()
REPORT = json.loads((DOCS / "confidence" / outliers.JSON_FILE).read_text())


def test_the_page_has_the_tables() -> None:
    assert outliers.auroc_table(REPORT) in PAGE
    assert outliers.abstention_table(REPORT) in PAGE
    assert f"confidence/{outliers.PICTURE_FILE}" in PAGE
    assert (DOCS / "confidence" / outliers.PICTURE_FILE).is_file()


def test_the_figures_are_those_of_the_shipped_models() -> None:
    manifests = [json.loads(path.read_text()) for path in (DOCS.parent / "models").glob("*/*/manifest.json")]
    shown = [each for each in manifests if not each["name"].endswith(FP16_SUFFIX)]
    scored = {each["name"]: each["metrics"] for each in shown if "abstain_above" in each}
    assert {name: seen["digits"] for name, seen in REPORT.items()} == {
        name: metrics["abstained_digits"] for name, metrics in scored.items()
    }
    for name, seen in REPORT.items():
        fashion = seen["kinds"]["fashion"]
        assert fashion["auroc"] == scored[name]["auroc_fashion"] >= 0.98
        assert fashion["abstained"] == scored[name]["abstained_fashion"]
