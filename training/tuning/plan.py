"""What a study is asked to do: shared by the command, its workers and its report. Knows nothing of Optuna."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.hyperparameters import configured
from training.runs.inputs import record_of
from training.tuning.space import Space, written

TRIALS_FOLDER = "trials"


@dataclass(frozen=True)
class Plan:
    """One study.

    family: the name of the model's module. config: the default configuration with the `fixed` changes,
    NAME=VALUE, which are not searched. trials: how many finished ones the study shall have.
    data_digest: of the data in `data_dir`, as in Splits. seed: of the search, and of every trial's run.
    """

    model: str
    family: str
    config: Any
    fixed: tuple[str, ...]
    space: Space
    folder: Path
    data_dir: Path
    data_digest: str
    trials: int
    seed: int
    device: Literal["auto", "cpu", "cuda"]

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of the searched fields in `config`: the first trial."""
        return {name: getattr(self.config, name) for name in self.space.fields}

    def changes(self, values: Mapping[str, float | str]) -> list[str]:
        """The searched values as NAME=VALUE."""
        return [f"{name}={written(field, values[name])}" for name, field in self.space.fields.items()]

    def configure(self, changes: Sequence[str]) -> Any:
        """The configuration with these changes, through the same checks as `train --set`."""
        return configured(self.model, self.config, changes)

    def run_folder(self, number: int) -> Path:
        """The folder of a trial's run."""
        return self.folder / TRIALS_FOLDER / f"{number:04d}"

    def record(self) -> dict[str, Any]:
        """What must stay the same when a study is continued, as plain values."""
        record = {"seed": self.seed} | record_of(self.model, self.data_digest, self.config)
        record |= {f"range of {name}": str(field) for name, field in self.space.fields.items()}
        plain: dict[str, Any] = json.loads(json.dumps(record | {"metric": self.space.metric}))
        return plain

    def command(self, changes: Sequence[str], *, short: bool) -> str:
        """The command that trains with these changes; short: as the trial did, else at full length."""
        words = ["python", "-m", "training", "train", self.model]
        if self.data_dir != Path("data/mnist"):
            words += ["--data-dir", str(self.data_dir)]
        words += ["--run-dir", f"runs/{self.model}-tuned{'-short' if short else ''}"]
        words += ["--epochs", str(self.config.epochs)] if short else []
        words += ["--seed", str(self.seed), "--threads", "1"]
        words += ["--device", self.device] if self.device != "auto" else []
        return shlex.join(words + [word for each in (*self.fixed, *changes) for word in ("--set", each)])
