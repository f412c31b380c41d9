"""Reads a run's folder back for the export: weights, hyperparameters, metrics and command."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from training.datasets.splits import Splits
from training.errors import ExportError
from training.runs.run import BEST_FILE, CONFIG_FILE, CURVES_FILE, METRICS_FILE, OLD_BEST_FILE, to_safetensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

# The name of a run's metrics.jsonl next to the model.
TRAINING_FILE = "training.jsonl"

# The name of a run's best weights next to the model.
WEIGHTS_FILE = "weights.safetensors"


def load_weights(network: nn.Module, run_dir: Path) -> None:
    """Load the weights of a run's best epoch into a network, and set it to eval mode.

    Raises ExportError if they are missing or cannot be read.
    """
    network.load_state_dict(read_weights(run_dir))
    network.eval()


def read_weights(run_dir: Path) -> dict[str, Tensor]:
    """The weights of a run's best epoch, on the CPU; also those of a run that kept them in best.pt.

    Raises ExportError if they are missing or cannot be read.
    """
    path = _file(run_dir, best_file(run_dir))
    try:
        if path.name == OLD_BEST_FILE:
            weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            return weights
        return safetensors.torch.load(path.read_bytes())
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError) as error:
        first = str(error).partition("\n")[0]
        raise ExportError(
            f"{path} cannot be read ({first}), expected the weights of the best epoch"
        ) from None


def best_file(run_dir: Path) -> str:
    """The name of the file that holds, or would hold, the weights of a run's best epoch."""
    return OLD_BEST_FILE if (run_dir / OLD_BEST_FILE).is_file() else BEST_FILE


def read_hyperparameters(run_dir: Path) -> dict[str, Any]:
    """The hyperparameters that a run was trained with."""
    hyperparameters: dict[str, Any] = json.loads(_file(run_dir, CONFIG_FILE).read_text())["hyperparameters"]
    return hyperparameters


def recorded(kind: type[Config], hyperparameters: Mapping[str, Any]) -> Config:
    """Return the configuration that a run recorded; a field that it does not name has its default.

    kind: a dataclass. A run may be older than one of its fields.
    """
    names = [field.name for field in fields(kind) if field.name in hyperparameters]
    return kind(**{name: hyperparameters[name] for name in names})


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The metrics of a run's epochs, one dict per epoch."""
    return [json.loads(line) for line in _file(run_dir, METRICS_FILE).read_text().splitlines()]


def read_command(run_dir: Path) -> str:
    """The command that trained the run."""
    command: str = json.loads(_file(run_dir, CONFIG_FILE).read_text())["command"]
    return command


def check_model(run_dir: Path, *models: str) -> None:
    """Raise ExportError unless the run trained one of these models."""
    trained = read_hyperparameters(run_dir).get("model", "unknown")
    if trained not in models:
        raise ExportError(
            f"{run_dir} is a run of {trained}, expected one of {' or '.join(models)}: give another --run-dir"
        )


def check_data(run_dir: Path, splits: Splits) -> None:
    """Raise ExportError unless the run was trained on this data."""
    digest = read_hyperparameters(run_dir).get("data_digest", "unknown")
    if digest != splits.digest:
        raise ExportError(
            f"{run_dir} was trained on data with digest {digest}, but the data given is {splits.name}, "
            f"digest {splits.digest}: give the same --data-dir as for the training"
        )


def copy_log(run_dir: Path, folder: Path) -> None:
    """Copy a run's record, metrics and curves next to the model."""
    names = {CONFIG_FILE: CONFIG_FILE, METRICS_FILE: TRAINING_FILE, CURVES_FILE: CURVES_FILE}
    for source, copy in names.items():
        if (run_dir / source).is_file():
            shutil.copyfile(run_dir / source, folder / copy)


def copy_weights(run_dir: Path, folder: Path) -> None:
    """Write the weights of a run's best epoch next to the model, as they were trained. Raises ExportError."""
    (folder / WEIGHTS_FILE).write_bytes(to_safetensors(read_weights(run_dir)))


def _file(run_dir: Path, name: str) -> Path:
    path = run_dir / name
    if not path.is_file():
        raise ExportError(f"{path} is missing: train the model first (python -m training train --help)")
    return path
