"""The command that measures generators on several draws of their samples."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.models.manifest import read_manifest
from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.errors import EvaluationError
from training.reports import draws
from training.versions import write_manifest


def command(workshop: Workshop, *more: str) -> list[str]:
    return ["draws", "--models-dir", str(workshop.models), "--data-dir", str(workshop.data_dir), *more]


def test_the_first_draw_is_the_manifests_and_the_others_differ(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "draws.json"
    assert main(command(workshop, "--on", "test", "--draws", "3", "--output", str(output))) == 0
    report = json.loads(output.read_text())
    assert report.keys() == {"gan", "vae", "flow"}
    for name, seen in report.items():
        metrics = read_manifest(workshop.models / name / "1").metrics
        assert {metric: values[0] for metric, values in seen.items()} == {
            metric: pytest.approx(metrics[metric], abs=1e-4) for metric in draws.FIGURES
        }
        assert len(set(seen["frechet_distance"])) == 3
    distances = report["gan"]["frechet_distance"]
    mean, deviation = np.mean(distances), np.std(distances, ddof=1)
    assert f"| `gan` | {mean:.3f} ± {deviation:.3f} |" in capsys.readouterr().out


def test_on_test_images_no_other_judge_compares_than_the_manifest_names(
    workshop: Workshop, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(workshop.models, tmp_path / "models"))
    first = read_manifest(models / "judge" / "1")
    later = (models / "judge" / "1").rename(models / "judge" / "2")
    write_manifest(later, first.model_copy(update={"version": 2}))
    with pytest.raises(EvaluationError, match=r"judge/1, which judged .*gan/1, is missing"):
        draws.draws(["gan"], models, workshop.splits, "test", count=2, output=None)


def test_on_validation_images_the_judge_of_the_epochs_compares(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(workshop, "gan")) == 2
    assert "cnn/1 was trained on " in capsys.readouterr().err
    monkeypatch.setattr(draws, "JUDGE", str(workshop.models / "cnn" / "1"))
    assert main(command(workshop, "gan", "--draws", "2")) == 0
    assert "| `gan` | " in capsys.readouterr().out


def test_one_draw_has_no_deviation(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command(workshop, "--draws", "1"))
    assert "1 is less than 2" in capsys.readouterr().err
