import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import write_folder
from PIL import Image

from training import gan
from training.data import Splits, load
from training.run import CHECKPOINT_FILE, CURVES_FILE, Run

# Widths of 4 to 8; 220 training images are 11 steps of 20 an epoch.
TINY = dataclasses.replace(
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
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load(write_folder(tmp_path_factory.mktemp("data")))


def new_run(folder: Path, config: gan.Config = TINY, resume: bool = False, kind: type[Run] = Run) -> Run:
    hyperparameters = {"model": "gan"} | dataclasses.asdict(config)
    return kind(folder, hyperparameters, epochs=config.epochs, seed=3, device="cpu", resume=resume)


class Interrupted(Exception):
    pass


class StoppingRun(Run):
    """A run that is cut off after its first epoch."""

    def end_epoch(self, *arguments, **options) -> None:  # type: ignore[no-untyped-def]
        super().end_epoch(*arguments, **options)
        raise Interrupted


def assert_same_state(left: Path, right: Path) -> None:
    states = [torch.load(folder / CHECKPOINT_FILE)["state"] for folder in (left, right)]
    for part in ("generator", "discriminator", "ema"):
        a, b = (state[part] for state in states)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_run_keeps_a_sample_grid_every_interval_of_the_whole_run(tmp_path: Path, splits: Splits) -> None:
    run = new_run(tmp_path)
    gan.train(TINY, splits, run)
    grids = sorted(path.name for path in (tmp_path / gan.SAMPLES_FOLDER).iterdir())
    steps = TINY.epochs * (len(splits.train) // TINY.batch_size)
    assert grids == [f"step-{step:06d}.png" for step in range(7, steps + 1, 7)]
    for path in (gan.step_file(tmp_path, 7), tmp_path / gan.SAMPLES_FILE):
        assert np.asarray(Image.open(path)).shape == (280, 280)
    assert (tmp_path / CURVES_FILE).is_file()
    losses = {"discriminator_loss", "generator_loss", "r1", "real_probability", "fake_probability"}
    assert all(losses < line.keys() for line in run.history)


def test_resumed_run_ends_with_the_same_bits_and_grids(tmp_path: Path, splits: Splits) -> None:
    gan.train(TINY, splits, new_run(tmp_path / "whole"))
    cut = new_run(tmp_path / "cut", kind=StoppingRun)
    with pytest.raises(Interrupted):
        gan.train(TINY, splits, cut)
    gan.train(TINY, splits, new_run(tmp_path / "cut", resume=True))
    assert_same_state(tmp_path / "cut", tmp_path / "whole")
    grids = [
        {path.name: path.read_bytes() for path in (tmp_path / name / gan.SAMPLES_FOLDER).iterdir()}
        for name in ("cut", "whole")
    ]
    assert grids[0] == grids[1]


def test_sample_grids_do_not_change_the_training(tmp_path: Path, splits: Splits) -> None:
    seldom = dataclasses.replace(TINY, sample_interval=10_000)
    gan.train(TINY, splits, new_run(tmp_path / "often"))
    gan.train(seldom, splits, new_run(tmp_path / "seldom", seldom))
    assert_same_state(tmp_path / "often", tmp_path / "seldom")
