"""Pruning: what is taken out, what a run begins with, and the commands, on tiny data."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from service.errors import RepositoryError
from service.models.manifest import read_manifest, sha256_of
from tests.support.idx_files import write_folder
from tests.support.tiny_runs import Interrupted, StoppingRun, Workshop, assert_same_state, new_run
from training.__main__ import main
from training.datasets.splits import load
from training.errors import PruningError, SourceError, TrainingError
from training.evaluation.classification import readings
from training.families import classifier
from training.families.layers import widths
from training.families.tensors import to_tensors
from training.runs.run import BEST_FILE

ORIGINAL = [32, 32, 32, 64, 64, 64, 128]


def begun_with(source: Path, pruned: float = 0.5, **changes: object) -> classifier.Config:
    """A tiny run that begins with a published CNN and learns from the labels."""
    config = dataclasses.replace(
        classifier.CNN_PRUNED,
        epochs=2,
        batch_size=20,
        source=str(source),
        pruned=pruned,
        teacher=classifier.NO_TEACHER,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture
def source(workshop: Workshop) -> Path:
    return workshop.models / "cnn" / "1"


def hidden(network: classifier.Classifier) -> Iterator[nn.Conv2d | nn.Linear]:
    return (each for each in network.body if isinstance(each, nn.Conv2d | nn.Linear))


def digits(workshop: Workshop) -> Tensor:
    return torch.from_numpy(workshop.splits.test.images.copy()).unsqueeze(1).float() / 255


def test_a_run_without_pruning_begins_with_exactly_the_source(workshop: Workshop, source: Path) -> None:
    network = classifier.initial(begun_with(source, 0.0), workshop.splits)
    with torch.no_grad():
        seen = network(digits(workshop)).softmax(1)
    expected = readings(source / "model.onnx", workshop.splits.test).probabilities
    assert widths(network, network.head) == ORIGINAL
    # float32 sums of up to 1,600 terms in another order
    np.testing.assert_allclose(seen.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "left"),
    [
        (0.1, [24, 24, 24, 56, 56, 56, 128]),
        (0.25, [24, 24, 24, 48, 48, 48, 128]),
        (0.3, [16, 16, 16, 40, 40, 40, 128]),  # 22 and 44 are no multiples of 8
        (0.75, [8, 8, 8, 16, 16, 16, 128]),
    ],
)
def test_a_pruned_network_is_narrower_by_the_fraction_rounded_down_to_multiples_of_8(
    fraction: float, left: list[int], workshop: Workshop, source: Path
) -> None:
    network = classifier.initial(begun_with(source, fraction), workshop.splits)
    assert widths(network, network.head) == left
    assert (network.head.in_features, network.head.out_features) == (left[-1], 10)
    assert network(digits(workshop)).shape == (60, 10)


def test_pruning_the_same_source_twice_gives_the_same_network(workshop: Workshop, source: Path) -> None:
    torch.manual_seed(1)
    first = classifier.initial(begun_with(source), workshop.splits).state_dict()
    torch.manual_seed(2)
    second = classifier.initial(begun_with(source), workshop.splits).state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_channels_that_do_nothing_are_the_ones_that_go() -> None:
    """With half of every layer's channels dead, at random places, pruning the half changes no logit."""
    torch.manual_seed(0)
    network = classifier.folded(classifier.build(classifier.CNN))
    for layer in hidden(network):
        dead = torch.randperm(len(layer.weight))[: len(layer.weight) // 2]
        with torch.no_grad():
            layer.weight[dead] = 0
            assert layer.bias is not None
            layer.bias[dead] = 0
    images = torch.rand(5, 1, 28, 28)
    expected = network(images)
    seen = classifier.without_channels(network, 0.5)(images)
    assert widths(network, network.head) == [*(width // 2 for width in ORIGINAL[:-1]), ORIGINAL[-1]]
    torch.testing.assert_close(seen, expected)


def test_an_mlp_and_a_judge_are_pruned_too() -> None:
    for config, left in ((classifier.MLP, [1024, 1024]), (classifier.JUDGE, [8, 8, 24, 24, 48, 96])):
        network = classifier.folded(classifier.build(config))
        classifier.without_channels(network, 0.5)
        assert widths(network, network.head) == left
        assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_a_stopped_run_goes_on_with_the_same_network(
    tmp_path: Path, workshop: Workshop, source: Path
) -> None:
    config = begun_with(source)
    classifier.train(config, workshop.splits, new_run(tmp_path / "whole", config))
    with pytest.raises(Interrupted):
        classifier.train(config, workshop.splits, new_run(tmp_path / "stopped", config, kind=StoppingRun))
    classifier.train(config, workshop.splits, new_run(tmp_path / "stopped", config, resume=True))
    assert_same_state(tmp_path / "whole", tmp_path / "stopped")
    assert (tmp_path / "whole" / BEST_FILE).read_bytes() == (tmp_path / "stopped" / BEST_FILE).read_bytes()


def test_the_commands_publish_a_pruned_network(tmp_path: Path, workshop: Workshop, source: Path) -> None:
    """The source may be gone when the run is exported."""
    original = read_manifest(source)
    source = Path(shutil.copytree(source, tmp_path / "cnn" / "1"))
    data = ["--data-dir", str(workshop.data_dir), "--run-dir", str(tmp_path / "run")]
    changes = {"source": str(source), "teacher": str(source), "batch_size": 20, "pruned": 0.5}
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    assert main(["train", "cnn-pruned", *data, *settings, "--epochs=2", "--threads=1", "--device=cpu"]) == 0
    shutil.rmtree(source)
    assert main(["export", "cnn-pruned", *data, "--models-dir", str(tmp_path / "models")]) == 0
    folder = tmp_path / "models" / "cnn-pruned" / "1"
    graph = onnx.load(folder / "model.onnx").graph
    assert next(each.dims for each in graph.initializer if each.name == "head.weight") == [10, 128]
    manifest = read_manifest(folder)
    assert int(manifest.metrics["multiply_adds"]) < int(original.metrics["multiply_adds"]) / 3
    page = " ".join((folder / "README.md").read_text().split())
    assert "have 16, 16, 16, 32, 32, 32 and 128 channels or units left" in page
    assert f"It began with the weights of `{source}`, without 50% of the channels of each layer but" in page
    assert "Distilled: " in page
    published = classifier.published(folder, workshop.splits)  # compares it with the graph
    assert widths(published, published.head) == [16, 16, 16, 32, 32, 32, 128]
    assert not any(weights.requires_grad for weights in published.parameters())


def test_fine_tuning_lowers_the_loss_that_pruning_left(
    tmp_path: Path, workshop: Workshop, source: Path
) -> None:
    config = begun_with(source, epochs=6, learning_rate=3e-3, ema_decay=0.9)
    validation = to_tensors(workshop.splits.validation, torch.device("cpu"))
    before = classifier.validate(classifier.initial(config, workshop.splits), *validation)["loss"]
    run = new_run(tmp_path / "run", config)
    classifier.train(config, workshop.splits, run)
    assert run.history[-1]["validation_loss"] < 0.9 * before  # weight decay alone takes off 0.02 %


def test_runs_older_than_pruning_began_with_fresh_weights() -> None:
    recorded = dataclasses.asdict(classifier.CNN)
    del recorded["source"], recorded["pruned"]
    config = classifier.config_of(recorded)
    assert (config.source, config.pruned) == ("none", 0.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"pruned": 0.8},
            PruningError,
            "pruned is 0.8, which leaves 6 of a layer's 32 channels, expected at least 8",
        ),
        ({"source": "none"}, PruningError, "pruned is 0.5, but source is none: expected source=FOLDER"),
        (
            {"dropout": 0.3},
            SourceError,
            "network cnn and dropout 0.3: expected mlp, cnn or judge, and dropout 0",
        ),
        ({"network": "vit"}, SourceError, "network vit and dropout 0: expected mlp, cnn or judge"),
        (
            {"network": "judge"},
            SourceError,
            r"another network: body.0.weight is \(32, 1, 3, 3\), expected \(24, 1",
        ),
        (
            {"network": "mlp"},
            SourceError,
            r"another network: body.1.weight is missing, expected \(2048, 784\)",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    changes: dict[str, object], error: type[TrainingError], message: str, workshop: Workshop, source: Path
) -> None:
    config = dataclasses.replace(begun_with(source), **changes)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        classifier.initial(config, workshop.splits)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gan/1", SourceError, "is a model for generation, expected classification"),
        ("nosuch/1", RepositoryError, "nosuch"),
    ],
)
def test_a_folder_that_holds_no_classifier_is_no_source(
    name: str, error: type[Exception], message: str, workshop: Workshop
) -> None:
    with pytest.raises(error, match=message):
        classifier.initial(begun_with(workshop.models / name), workshop.splits)


def test_a_source_of_other_data_is_refused(tmp_path: Path, source: Path) -> None:
    other = load(write_folder(tmp_path / "other", seed=5))
    with pytest.raises(SourceError, match="but the data given is"):
        classifier.initial(begun_with(source), other)


def test_a_source_with_other_operators_is_refused(tmp_path: Path, workshop: Workshop, source: Path) -> None:
    """Its tensors are a CNN's, but it scales the pixels in another way."""
    folder = Path(shutil.copytree(source, tmp_path / "cnn" / "1"))
    graph = onnx.load(folder / "model.onnx")
    scale = next(each for each in graph.graph.initializer if each.name == "scalar_tensor_default")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(128, np.float32), scale.name))
    onnx.save(graph, folder / "model.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = sha256_of(folder / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match=r"a probability differs by 0\.\d+ .* expected at most 0\.0001"):
        classifier.initial(begun_with(folder), workshop.splits)


@pytest.mark.parametrize("fraction", ["-0.1", "1", "nan"])
def test_a_fraction_outside_its_range_is_one_line(
    fraction: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "cnn-pruned", "--run-dir", str(tmp_path / "run"), "--set", f"pruned={fraction}"]
    assert main(arguments) == 2
    assert f"--set pruned={fraction}: expected 0 or more, and less than 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_named(
    tmp_path: Path,
    workshop: Workshop,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    monkeypatch.delitem(sys.modules, "training.families.pruning", raising=False)
    arguments = ["train", "cnn-pruned", "--data-dir", str(workshop.data_dir), "--device", "cpu"]
    arguments += ["--set", f"source={source}", "--set", "teacher=none", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "pruning needs the extra `pruning`: " in capsys.readouterr().err
