"""Tiny runs of every family on small IDX files, and the models exported from them: seconds in all."""

import dataclasses
import fcntl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tests.support.idx_files import write_folder
from training.datasets.splits import Splits, load
from training.families import classifier, flow, gan, vae
from training.runs.run import CHECKPOINT_FILE, Run
from training.versions import Target

# 220 training images are 11 steps of 20 per epoch; the widths are 4 to 8.
CNN = dataclasses.replace(classifier.CNN, epochs=4, batch_size=20)
GAN = dataclasses.replace(
    gan.CONFIG,
    epochs=2,
    batch_size=20,
    latent=5,
    embedding=3,
    hidden=8,
    channels_7=6,
    channels_14=5,
    channels_28=4,
    discriminator_channels=4,
    features=8,
    r1_interval=4,
    sample_interval=7,
    judge="none",
)
VAE = dataclasses.replace(
    vae.CONFIG,
    epochs=2,
    batch_size=20,
    latent=5,
    embedding=3,
    hidden=8,
    channels_7=6,
    channels_14=5,
    channels_28=4,
    blocks_7=1,
    blocks_14=1,
    flow_layers=2,
    flow_hidden=8,
    precision="32-true",
    judge="none",
)
FLOW = dataclasses.replace(
    flow.CONFIG,
    epochs=2,
    batch_size=20,
    steps=3,
    channels_14=8,
    channels_7=12,
    blocks=1,
    embedding=8,
    coupling=64,
    judge="none",
)


@dataclass(frozen=True)
class Workshop:
    """A data set, a run of each family, and their published models; which no test may change."""

    data_dir: Path
    splits: Splits
    runs: Path
    models: Path


def shared(folder: Path) -> Workshop:
    """Return the workshop of all processes that test now: the first one to come makes it."""
    made = folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data_dir = folder / "data"
        if not made.exists():
            write_folder(data_dir)
        workshop = Workshop(data_dir, load(data_dir), folder / "runs", folder / "models")
        if not made.exists():
            _make(workshop)
            made.touch()
    return workshop


def _make(workshop: Workshop) -> None:
    """Train and export cnn, gan, vae and flow; the judge of samples is the cnn under another name."""
    judge = str(workshop.models / "cnn" / "1")
    for name, module, config in (
        ("cnn", classifier, CNN),
        ("gan", gan, dataclasses.replace(GAN, judge=judge)),
        ("vae", vae, dataclasses.replace(VAE, judge=judge)),
        ("flow", flow, dataclasses.replace(FLOW, judge=judge)),
    ):
        run_dir = workshop.runs / name
        origin = {"model": name, "data_digest": workshop.splits.digest}
        module.train(config, workshop.splits, new_run(run_dir, config, origin=origin))
        module.export(name, run_dir, workshop.splits, Target(workshop.models))
        if name == "cnn":
            module.export("judge", run_dir, workshop.splits, Target(workshop.models))


class Interrupted(Exception):
    """The run was cut off."""


class StoppingRun(Run):
    """A run that is cut off after its first epoch."""

    def end_epoch(self, *arguments: Any, **options: Any) -> None:
        super().end_epoch(*arguments, **options)
        raise Interrupted


def new_run(
    folder: Path,
    config: Any,
    resume: bool = False,
    kind: type[Run] = Run,
    origin: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    hyperparameters = {**origin, **dataclasses.asdict(config)}
    return kind(folder, hyperparameters, epochs=config.epochs, seed=3, device="cpu", resume=resume)


def assert_same_state(left: Path, right: Path) -> None:
    """The modules in two runs' checkpoints have the same bits."""
    states = [torch.load(folder / CHECKPOINT_FILE)["state"] for folder in (left, right)]
    for part in states[0]:
        a, b = (_tensors(state[part]) for state in states)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


def _tensors(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    if isinstance(state, dict):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif isinstance(state, list):
        items = enumerate(state)
    else:
        return {prefix: torch.tensor(state)} if isinstance(state, int | float) else {}
    return {k: v for name, value in items for k, v in _tensors(value, f"{prefix}.{name}").items()}
