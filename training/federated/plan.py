"""What a federated study is asked to do: plain values, which also travel to the simulated clients."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.federated.local import Local
from training.federated.splits import Split
from training.files import write_atomically

Algorithm = Literal["fedavg", "fedprox", "dp-fedavg"]


@dataclass(frozen=True)
class Setting:
    """One federated training.

    participation: the share of the clients that train in a round; for dp-fedavg the probability of each.
    proximal: mu of fedprox. clip_norm, noise_multiplier: of dp-fedavg; see `averaging.private_average`.
    """

    algorithm: Algorithm
    split: Split
    clients: int
    rounds: int
    participation: float
    local_epochs: int
    batch_size: int
    learning_rate: float
    proximal: float
    clip_norm: float
    noise_multiplier: float
    seed: int
    data_dir: str

    @property
    def name(self) -> str:
        """As in the report and in names of files."""
        return f"{self.algorithm}-{self.split}-{self.clients}-clients"

    @property
    def local(self) -> Local:
        """What each client does."""
        proximal = self.proximal if self.algorithm == "fedprox" else 0.0
        return Local(self.local_epochs, self.batch_size, self.learning_rate, proximal)

    def to_json(self) -> str:
        """As text, for a message."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Setting":
        """A setting that `to_json` wrote."""
        return Setting(**json.loads(text))


@dataclass(frozen=True)
class History:
    """What a federated training reached.

    accuracies: on the validation images, before the first round and after each. seconds: of the clock.
    epsilon: for one client added or removed, at `delta`; None without privacy.
    """

    setting: Setting
    accuracies: list[float]
    test_accuracy: float
    epsilon: float | None
    delta: float | None
    seconds: float


def write_history(folder: Path, history: History) -> None:
    """Keep a history in a folder, under its setting's name."""
    text = json.dumps(dataclasses.asdict(history), indent=2)
    write_atomically(folder / f"{history.setting.name}.json", f"{text}\n".encode())


def read_history(folder: Path, setting: Setting) -> History | None:
    """The history of a setting if the folder has it, and None if it is missing or that of other values."""
    path = folder / f"{setting.name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    seen = Setting(**content.pop("setting"))
    return History(seen, **content) if seen == setting else None
