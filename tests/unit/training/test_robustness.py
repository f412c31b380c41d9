"""Corruptions, the temperature, and the command that measures both."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.models.manifest import sha256_of
from service.models.signatures import SIGNATURE_FILE
from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.evaluation.corruptions import CORRUPTIONS, corrupted
from training.evaluation.metrics import negative_log_likelihood
from training.evaluation.temperature import best_temperature, tempered
from training.provenance.bom import BOM_FILE
from training.reports import robustness

MOVES = {"shear", "scale", "rotate", "translate"}


def drawn(count: int = 4) -> np.ndarray:
    """A thick cross on black, in uint8."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 12:16, 6:22] = images[:, 6:22, 12:16] = 255
    return images


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_every_image_and_is_the_same_for_a_seed(name: str) -> None:
    images = drawn()
    seen = corrupted(images, name)
    assert (seen.shape, seen.dtype) == (images.shape, np.uint8)
    assert (seen != images).any(axis=(1, 2)).all()
    assert np.array_equal(seen, corrupted(images, name))
    assert np.array_equal(images, drawn())


@pytest.mark.parametrize("name", sorted(MOVES))
def test_a_corruption_that_moves_ink_adds_none_to_an_empty_sheet(name: str) -> None:
    empty = np.zeros((2, 28, 28), np.uint8)
    assert not corrupted(empty, name).any()


def test_another_seed_gives_another_corruption() -> None:
    assert not np.array_equal(corrupted(drawn(), "fog", 0), corrupted(drawn(), "fog", 1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_spoiled_a_classifier_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2000, 5))
    right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in right])
    sure = tempered(right.astype(np.float32), 1 / temperature)
    found = best_temperature(sure, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    assert (
        negative_log_likelihood(tempered(sure, found), labels) <= negative_log_likelihood(sure, labels) + 1e-9
    )


def test_a_temperature_changes_no_decision_and_no_sum() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10) / 5, 50).astype(np.float32)
    warm = tempered(probabilities, 1.7)
    assert np.array_equal(warm.argmax(1), probabilities.argmax(1))
    assert warm.sum(1) == pytest.approx(np.ones(50), abs=1e-5)
    assert tempered(probabilities, 1.0) == pytest.approx(probabilities, abs=1e-6)


def test_robustness_measures_every_classifier_on_every_corruption(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "robustness.json"
    models = tmp_path / "models"
    shutil.copytree(workshop.models, models)
    card = models / "cnn" / "1" / "README.md"
    before = card.read_text()
    options = ["--models-dir", str(models), "--data-dir", str(workshop.data_dir)]
    assert main(["robustness", *options, "--output", str(output), "--cards"]) == 0
    report = json.loads(output.read_text())
    assert set(report) == {"cnn", "judge"}
    assert set(report["cnn"]) == {"clean", "temperature", *CORRUPTIONS}
    printed = capsys.readouterr().out
    assert f"| canny edges | {100 * report['cnn']['canny_edges']['accuracy']:.2f} |" in printed
    assert report["cnn"]["temperature"]["nll"] > 0

    written = card.read_text()
    assert f"\n| canny edges | {report['cnn']['canny_edges']['accuracy']:.4f} |" in written
    table = robustness.card_section("cnn", report["cnn"], "validation", len(workshop.splits.validation))
    assert written.replace(f"{table}\n", "") == before
    parts = json.loads((card.parent / BOM_FILE).read_text())["components"]
    (listed,) = [part["hashes"][0]["content"] for part in parts if part["name"] == card.name]
    assert listed == sha256_of(card)
    assert main(["robustness", "cnn", *options, "--cards"]) == 0
    assert card.read_text() == written
    (models / "cnn" / "1" / SIGNATURE_FILE).write_text("{}")
    assert main(["robustness", *options, "--cards"]) == 2
    assert "cnn/1: signed, so the card cannot change" in capsys.readouterr().err
