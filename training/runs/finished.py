"""Reads a run's folder back for the export: weights, hyperparameters, metrics and command."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.datasets.splits import Splits
from training.errors import ExportError
from training.runs.run import BEST_FILE, CONFIG_FILE, CURVES_FILE, METRICS_FILE

# The name of a run's metrics.jsonl next to the model.
TRAINING_FILE = "training.jsonl"


def load_weights(network: nn.Module, run_dir: Path) -> None:
    """Load the weights of a run's best epoch into a network, and set it to eval mode."""
    network.load_state_dict(torch.load(_file(run_dir, BEST_FILE), map_location="cpu", weights_only=True))
    network.eval()


def read_hyperparameters(run_dir: Path) -> dict[str, Any]:
    """The hyperparameters that a run was trained with."""
    hyperparameters: dict[str, Any] = json.loads(_file(run_dir, CONFIG_FILE).read_text())["hyperparameters"]
    return hyperparameters


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The metrics of a run's epochs, one dict per epoch."""
    return [json.loads(line) for line in _file(run_dir, METRICS_FILE).read_text().splitlines()]


def read_command(run_dir: Path) -> str:
    """The command that trained the run."""
    command: str = json.loads(_file(run_dir, CONFIG_FILE).read_text())["command"]
    return command


def check_model(run_dir: Path, model: str) -> None:
    """Raise ExportError unless the run trained this model."""
    trained = read_hyperparameters(run_dir).get("model", "unknown")
    if trained != model:
        raise ExportError(f"{run_dir} is a run of {trained}, expected one of {model}: give another --run-dir")


def check_data(run_dir: Path, splits: Splits) -> None:
    """Raise ExportError unless the run was trained on this data."""
    digest = read_hyperparameters(run_dir).get("data_digest", "unknown")
    if digest != splits.digest:
        raise ExportError(
            f"{run_dir} was trained on data with digest {digest}, but the data given is {splits.name}, "
            f"digest {splits.digest}: give the same --data-dir as for the training"
        )


def copy_log(run_dir: Path, folder: Path) -> None:
    """Copy a run's metrics and curves next to the model."""
    for source, copy in ((METRICS_FILE, TRAINING_FILE), (CURVES_FILE, CURVES_FILE)):
        if (run_dir / source).is_file():
            shutil.copyfile(run_dir / source, folder / copy)


def _file(run_dir: Path, name: str) -> Path:
    path = run_dir / name
    if not path.is_file():
        raise ExportError(f"{path} is missing: train the model first (python -m training train --help)")
    return path
