import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.models.manifest import MANIFEST_FILE, MODEL_FILE
from tests.support.idx_files import write_folder
from tests.support.tiny_runs import Workshop
from training.datasets.splits import load
from training.errors import EvaluationError
from training.evaluation.evaluate import differences, evaluate
from training.evaluation.generation import draw
from training.evaluation.judge import latest_judge
from training.evaluation.metrics import Metrics


def test_samples_are_reproducible_and_follow_the_labels(workshop: Workshop) -> None:
    path = workshop.models / "gan" / "1" / MODEL_FILE
    labels = np.arange(30) % 10
    assert np.array_equal(draw(path, labels), draw(path, labels))
    assert not np.array_equal(draw(path, labels), draw(path, (labels + 1) % 10))


def test_differences_name_metrics_beyond_the_tolerance() -> None:
    recorded: Metrics = {"errors": 30, "accuracy": 0.99, "elbo": -80.0, "judge": "cnn/1", "gone": 1.0}
    near: Metrics = {"errors": 31, "accuracy": 0.99005, "elbo": -80.005, "judge": "cnn/1"}
    assert differences(recorded, near) == {"gone"}
    far: Metrics = {"errors": 32, "accuracy": 0.9897, "elbo": -80.1, "judge": "cnn/2", "gone": 1.0, "new": 1}
    assert differences(recorded, far) == {"errors", "accuracy", "elbo", "judge", "new"}


@pytest.fixture
def models(tmp_path: Path, workshop: Workshop) -> Path:
    """A copy of the workshop's models that a test may change."""
    return Path(shutil.copytree(workshop.models, tmp_path / "models"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    edit(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def test_untouched_models_of_every_task_agree(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([], workshop.models, workshop.splits)
    said = capsys.readouterr().out
    assert "DIFFERS" not in said
    for model in ("cnn/1", "judge/1", "gan/1", "vae/1", "vae-encoder/1", "flow/1"):
        metrics = json.loads((workshop.models / model / MANIFEST_FILE).read_text())["metrics"]
        seen = {line.split()[1] for line in said.splitlines() if line.startswith(f"{model} ")}
        assert seen == metrics.keys() - {"data", "data_digest"}


@pytest.mark.parametrize(
    ("model", "metric"),
    [("cnn", "test_nll"), ("gan", "frechet_distance"), ("vae", "test_elbo"), ("vae-encoder", "test_kl")],
)
def test_wrong_metric_is_found(
    workshop: Workshop, models: Path, model: str, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(models / model / "1", lambda content: content["metrics"].update({metric: 0.123}))
    assert not evaluate([model], models, workshop.splits)
    wrong = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.endswith("DIFFERS")]
    assert wrong == [metric]


def test_graph_with_another_sha256_is_refused(workshop: Workshop, models: Path) -> None:
    with (models / "gan" / "1" / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EvaluationError, match=r"SHA-256 is .*, expected .* \(manifest\.json\)"):
        evaluate(["gan"], models, workshop.splits)


def test_other_data_is_refused(tmp_path: Path, workshop: Workshop) -> None:
    other = load(write_folder(tmp_path, train=130))
    with pytest.raises(EvaluationError, match=r"was measured on unknown, digest .* but the data given"):
        evaluate(["gan"], workshop.models, other)
    with pytest.raises(EvaluationError, match="holds no version trained on unknown"):
        latest_judge(workshop.models, other)


def test_generator_keeps_its_first_judge(workshop: Workshop, models: Path) -> None:
    shutil.copytree(models / "judge" / "1", models / "judge" / "2")
    change(models / "judge" / "2", lambda content: content.update(version=2))
    assert latest_judge(models, workshop.splits).identity["classifier"] == "judge/2"
    assert evaluate(["gan"], models, workshop.splits)
    shutil.rmtree(models / "judge" / "1")
    with pytest.raises(EvaluationError, match=r"judge/1, which judged .*gan/1, is missing"):
        evaluate(["gan"], models, workshop.splits)


def test_nothing_to_evaluate_is_an_error(tmp_path: Path, workshop: Workshop) -> None:
    with pytest.raises(EvaluationError, match="holds no model"):
        evaluate([], tmp_path, workshop.splits)
    with pytest.raises(EvaluationError, match=r"nothing holds no version with a manifest\.json"):
        evaluate(["nothing"], workshop.models, workshop.splits)
