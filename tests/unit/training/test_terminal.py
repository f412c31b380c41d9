"""The command that is published with a model."""

from pathlib import Path

import pytest

from training.terminal import command_line


def test_a_published_command_names_no_folder_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        *("import", "/home/me/networks/pets.onnx", "pets", "--mean", "0.5"),
        *("--models-dir", str(tmp_path / "models"), "--labels=/srv/pets.txt", "--data-dir", "data/mnist"),
        *("--set", "teacher=/home/me/models/cnn/1", "--set", "temperature=2", "--shape", "3"),
    ]
    monkeypatch.setattr("sys.argv", ["/usr/lib/training/__main__.py", *given])
    assert command_line() == (
        "python -m training import pets.onnx pets --mean 0.5 --models-dir models --labels=pets.txt "
        "--data-dir data/mnist --set teacher=1 --set temperature=2 --shape 3"
    )
