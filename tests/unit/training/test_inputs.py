"""The record of what a run is made from: a run is resumed with the same models and runs, or refused."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.support.tiny_runs import FLOW, Workshop
from training.__main__ import MODELS, family_of, main
from training.errors import EvaluationError, RunError
from training.runs.inputs import FOLDERS, record_of
from training.runs.run import Run

REPLACED = [
    pytest.param("models/cnn/1", "models/judge/1", id="a published model"),
    pytest.param("runs/flow", "runs/gan", id="an earlier run"),
]


def put(workshop: Workshop, name: str, folder: Path) -> None:
    """Replace a folder by a copy of one of the workshop's, which a published judge passes as a cnn."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workshop.data_dir.parent / name, folder)
    if (manifest := folder / "manifest.json").is_file():
        manifest.write_text(manifest.read_text().replace('"judge"', '"cnn"'))


def open_run(folder: Path, record: dict[str, Any], resume: bool = False) -> Run:
    return Run(folder, record, epochs=1, seed=0, device="cpu", resume=resume)


@pytest.mark.parametrize("model", MODELS)
def test_every_hyperparameter_that_is_free_text_is_a_folder_with_a_digest(model: str) -> None:
    _, config = family_of(model, [])
    texts = {name for name, kind in get_type_hints(type(config)).items() if kind is str}
    assert texts <= set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(("first", "second"), REPLACED)
def test_a_run_is_not_resumed_with_other_weights_in_a_folder_that_it_reads(
    tmp_path: Path, workshop: Workshop, name: str, first: str, second: str
) -> None:
    read = tmp_path / "cnn" / "1"
    change: Any = {name: str(read)}
    config = dataclasses.replace(FLOW, **change)
    put(workshop, first, read)
    open_run(tmp_path / "run", record_of("flow", "0", config)).end_epoch(0, {}, {})
    put(workshop, second, read)
    with pytest.raises(RunError, match=rf"other hyperparameters: {name}_digest is '\w+', was '\w+'$"):
        open_run(tmp_path / "run", record_of("flow", "0", config), resume=True)
    put(workshop, first, read)
    open_run(tmp_path / "run", record_of("flow", "0", config), resume=True)


def test_train_records_the_digests(
    tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "cnn" / "1"
    put(workshop, "models/cnn/1", teacher)
    command = ["train", "cnn", "--data-dir", str(workshop.data_dir), "--run-dir", str(tmp_path / "run")]
    command += ["--epochs", "1", "--threads", "1", "--device", "cpu", "--set", "batch_size=100"]
    command += ["--set", f"teacher={teacher}", "--resume"]
    assert main(command) == 0
    put(workshop, "models/judge/1", teacher)
    assert main(command) == 2
    assert "teacher_digest is" in capsys.readouterr().err


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    record = record_of("flow", "0", dataclasses.replace(FLOW, teacher=str(tmp_path), source="none"))
    assert not {"teacher_digest", "source_digest"} & record.keys()


def test_a_published_model_that_is_not_whole_is_an_error(tmp_path: Path, workshop: Workshop) -> None:
    reader = tmp_path / "cnn" / "1"
    put(workshop, "models/cnn/1", reader)
    (reader / "model.onnx").write_bytes(b"cut")
    with pytest.raises(EvaluationError, match="SHA-256"):
        record_of("flow", "0", dataclasses.replace(FLOW, reader=str(reader)))
