"""The loggers of Fabric that a run's metrics also go to."""

import csv
import sys
from pathlib import Path

import pytest

from tests.support.tiny_runs import CNN, Interrupted, StoppingRun, Workshop
from training.__main__ import main
from training.errors import RunError
from training.families import classifier
from training.runs.loggers import Loggers
from training.runs.run import Run


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "logs" / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def open_run(folder: Path, kind: type[Run] = Run, resume: bool = False) -> Run:
    return kind(folder, {}, epochs=CNN.epochs, seed=0, device="cpu", resume=resume, loggers=["csv"])


def test_a_resumed_run_logs_each_epoch_once(tmp_path: Path, workshop: Workshop) -> None:
    with pytest.raises(Interrupted):
        classifier.train(CNN, workshop.splits, open_run(tmp_path, StoppingRun))
    assert [row["epoch"] for row in rows(tmp_path)] == ["1"]
    run = open_run(tmp_path, resume=True)
    classifier.train(CNN, workshop.splits, run)
    assert [int(row["step"]) for row in rows(tmp_path)] == [1, 2, 3, 4]
    for row, line in zip(rows(tmp_path), run.history, strict=True):
        assert {name: float(row[name]) for name in line} == pytest.approx(line)


def test_the_command_logs_csv_unless_told(tmp_path: Path, workshop: Workshop) -> None:
    options = ["--data-dir", str(workshop.data_dir), "--device", "cpu", "--threads", "1", "--epochs", "1"]
    options += ["--set", "batch_size=20"]
    assert main(["train", "cnn", *options, "--run-dir", str(tmp_path / "run")]) == 0
    assert len(rows(tmp_path / "run")) == 1


def test_tensorboards_files_hold_every_metric(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    Loggers(["tensorboard"], tmp_path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_a_missing_package_and_an_unknown_logger_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="logger is 'paper', expected one of csv, tensorboard"):
        Loggers(["paper"], tmp_path, [])
    for name in ("tensorboard", "torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(RunError, match="install the extra `tensorboard`"):
        Loggers(["tensorboard"], tmp_path, [])
