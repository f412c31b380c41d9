"""What a privacy study is asked to do: shared by its training, its attacks and its report."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.privacy.family import Config

RUNS_FOLDER = "runs"
ATTACK_FOLDER = "attack"


@dataclass(frozen=True)
class Level:
    """One degree of privacy: an epsilon, or None for training without privacy."""

    epsilon: float | None

    @property
    def name(self) -> str:
        """As in names of folders."""
        return "none" if self.epsilon is None else f"epsilon-{self.epsilon:g}"

    def __str__(self) -> str:
        return "no privacy" if self.epsilon is None else f"epsilon {self.epsilon:g}"


@dataclass(frozen=True)
class Plan:
    """One study.

    config: of the private runs, whose epsilon is replaced by each of `epsilons`. seeds: the number of runs
    per level. pool: the number of training images of which half are a model's own in the attacks.
    models: the number of models per level that are attacked. attacked_epochs, attacked_batch_size: theirs.
    """

    config: Config
    epsilons: tuple[float, ...]
    seeds: int
    pool: int
    models: int
    attacked_epochs: int
    attacked_batch_size: int
    folder: Path
    data_digest: str
    device: Literal["auto", "cpu", "cuda"]

    @property
    def levels(self) -> list[Level]:
        """No privacy first, then the least private."""
        return [Level(None), *(Level(each) for each in sorted(self.epsilons, reverse=True))]

    def configure(self, level: Level) -> Config:
        """The configuration of a level's runs."""
        if level.epsilon is None:
            return dataclasses.replace(self.config, privacy="none")
        return dataclasses.replace(self.config, privacy="dp-sgd", epsilon=level.epsilon)

    def attacked(self, level: Level) -> Config:
        """The configuration of a level's attacked models."""
        changes: dict[str, Any] = {"epochs": self.attacked_epochs, "batch_size": self.attacked_batch_size}
        return dataclasses.replace(self.configure(level), **changes)

    def run_folder(self, level: Level, seed: int) -> Path:
        """The folder of a level's run, from which `export private` can publish."""
        return self.folder / RUNS_FOLDER / f"{level.name}-seed-{seed}"

    def attack_folder(self, level: Level) -> Path:
        """The folder of a level's attacked models' confidences."""
        return self.folder / ATTACK_FOLDER / level.name

    def record(self) -> dict[str, Any]:
        """What must stay the same when a study is continued, as plain values."""
        record = {"data_digest": self.data_digest} | dataclasses.asdict(self.config)
        del record["epsilon"], record["privacy"]
        names = ("pool", "models", "attacked_epochs", "attacked_batch_size")
        record |= {name: getattr(self, name) for name in names}
        plain: dict[str, Any] = json.loads(json.dumps(record))
        return plain
