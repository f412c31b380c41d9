"""The models that a report measures."""

import pytest

from tests.support.tiny_runs import Workshop
from training.__main__ import main


@pytest.mark.parametrize(
    ("command", "name", "problem"),
    [
        ("robustness", "gan", "gan/1 is a model for generation"),
        ("robustness", "ghost", "holds no model for classification ghost"),
        ("draws", "cnn", "cnn/1 is a model for classification"),
        ("draws", "ghost", "holds no model for generation ghost"),
    ],
)
def test_only_models_for_the_reports_task_are_measured(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], command: str, name: str, problem: str
) -> None:
    options = ["--models-dir", str(workshop.models), "--data-dir", str(workshop.data_dir)]
    assert main([command, name, *options]) == 2
    assert problem in capsys.readouterr().err
