"""The quality of samples after each epoch: what it sees, and what it chooses."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support.idx_files import write_folder
from tests.support.tiny_runs import GAN, Workshop, new_run
from training.__main__ import main
from training.evaluation.epochs import JUDGE, EpochQuality, epoch_quality
from training.evaluation.metrics import class_distance
from training.families import gan
from training.runs.finished import read_history
from training.runs.run import BEST_FILE


@pytest.fixture(scope="module")
def quality(workshop: Workshop) -> EpochQuality:
    return EpochQuality(workshop.models / "cnn" / "1", workshop.splits)


def test_real_images_are_perfect(quality: EpochQuality, workshop: Workshop) -> None:
    seen = quality(workshop.splits.validation.images)
    assert seen["validation_distance"] == pytest.approx(0, abs=1e-4)
    assert seen["validation_diversity"] == pytest.approx(1)
    assert (seen["validation_precision"], seen["validation_recall"]) == (1, 1)
    classes = [value for name, value in seen.items() if name.startswith("validation_agreement_")]
    assert len(classes) == 10
    assert np.mean(classes) == pytest.approx(seen["validation_agreement"])


def test_a_class_that_is_drawn_as_another_shows_in_its_agreement(
    quality: EpochQuality, workshop: Workshop
) -> None:
    images = workshop.splits.validation.images.copy()
    labels = workshop.splits.validation.labels
    images[labels == 3] = images[np.flatnonzero(labels == 4)[0]]
    before, after = quality(workshop.splits.validation.images), quality(images)
    assert after["validation_agreement_3"] == 0
    assert after["validation_agreement_4"] == before["validation_agreement_4"]
    assert after["validation_distance"] > before["validation_distance"]


def test_one_image_a_class_has_no_diversity(quality: EpochQuality, workshop: Workshop) -> None:
    labels = workshop.splits.validation.labels
    first = {label: workshop.splits.validation.images[labels == label][0] for label in range(10)}
    collapsed = np.stack([first[int(label)] for label in labels])
    assert quality(collapsed)["validation_diversity"] == pytest.approx(0, abs=1e-3)


@given(st.integers(2, 30), st.integers(1, 4), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_class_distance_is_the_mean_over_pairs(count: int, classes: int, scale: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    features = (chance.normal(size=(count, 5)) * scale).astype(np.float32)
    labels = np.concatenate([np.zeros(2, np.int64), chance.integers(0, classes, count - 2)])
    expected = []
    for label in set(labels.tolist()):
        own = features[labels == label].astype(np.float64)
        pairs = [np.linalg.norm(own[i] - own[j]) for i in range(len(own)) for j in range(i)]
        expected += [np.mean(pairs)] if pairs else []
    assert class_distance(features, labels) == pytest.approx(np.mean(expected), rel=1e-5, abs=1e-5)


def test_the_best_checkpoint_is_that_of_the_smallest_distance(tmp_path: Path, workshop: Workshop) -> None:
    config = dataclasses.replace(GAN, epochs=4, judge=str(workshop.models / "cnn" / "1"))
    best, distances = [], []

    class Watching(type(new_run(tmp_path / "kind", config))):  # type: ignore[misc]
        def end_epoch(self, *arguments: object, **options: object) -> None:
            super().end_epoch(*arguments, **options)
            best.append(load_file(self.folder / BEST_FILE)["embedding"])
            distances.append(self.history[-1]["validation_distance"])

    gan.train(config, workshop.splits, new_run(tmp_path / "run", config, kind=Watching))
    chosen = int(np.argmin(distances))
    assert torch.equal(best[-1], best[chosen])
    assert all(not torch.equal(best[-1], best[epoch]) for epoch in range(chosen))


@pytest.mark.parametrize("name", ["gan", "vae", "flow"])
def test_every_epoch_of_a_generator_logs_its_quality(name: str, workshop: Workshop) -> None:
    for line in read_history(workshop.runs / name):
        for metric in ("distance", "precision", "recall", "diversity", "agreement", "agreement_0"):
            assert np.isfinite(line[f"validation_{metric}"])
    json.dumps(read_history(workshop.runs / name), allow_nan=False)


def test_a_study_of_the_gan_needs_a_judge(
    tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data-dir", str(workshop.data_dir), "--study-dir", str(tmp_path / "study")]
    assert main(["tune", "gan", *options]) == 2
    assert "gan logs no validation_distance without a judge" in capsys.readouterr().err


def test_a_run_without_its_judge_stops_before_the_first_epoch(
    tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folder(tmp_path / "other", seed=5)
    for judge, data_dir, message in (
        (workshop.models / "cnn" / "1", other, "but the data given is"),
        (tmp_path / "nosuch" / "1", workshop.data_dir, "is missing"),
        (workshop.models / "gan" / "1", workshop.data_dir, "expected classification"),
    ):
        options = ["--data-dir", str(data_dir), "--run-dir", str(tmp_path / "run"), "--set", f"judge={judge}"]
        assert main(["train", "gan", *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--set judge=none" in error
        assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_card_names_the_epoch_that_was_chosen(workshop: Workshop) -> None:
    card = " ".join((workshop.models / "gan" / "1" / "README.md").read_text().split())
    history = read_history(workshop.runs / "gan")
    best = min(history, key=lambda line: line["validation_distance"])
    assert f"as of epoch {best['epoch']:.0f}, whose samples were closest" in card


def test_the_default_judge_is_left_out_on_other_data(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert epoch_quality(JUDGE, workshop.splits) is None
    assert "the samples of each epoch are not judged: " in capsys.readouterr().err
