import dataclasses
import math
import shutil
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from service.errors import RepositoryError
from service.models.manifest import MODEL_FILE, read_manifest
from tests.support.tiny_runs import FLOW, Interrupted, StoppingRun, Workshop, assert_same_state, new_run
from training.datasets.splits import SIDE
from training.errors import ArgumentError, EvaluationError, ExportError, SourceError
from training.export.to_onnx import to_onnx
from training.families import flow
from training.families.solver import Solver, integrate, merged_steps_loss, path, step_times
from training.families.source import take_weights
from training.hyperparameters import configured
from training.onnx_files import open_session
from training.runs.finished import read_weights
from training.runs.run import BEST_FILE, CONFIG_FILE


class Constant(nn.Module):
    """A network that gives the same value everywhere, and notes what it is asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.asked.append((x, t))
        return torch.full_like(x, self.value) + 0 * labels.view(-1, 1, 1, 1)


class Gaussian(nn.Module):
    """The exact field of images ~ N(mean, deviation^2) in each pixel."""

    def __init__(self, mean: float | Tensor, deviation: float | Tensor) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        # E[x - z | x_t] of two normal variables: the mean, and the regression on x_t.
        t = t.view(-1, 1, 1, 1) + 0 * labels.view(-1, 1, 1, 1)
        variance = t**2 * self.deviation**2 + (1 - t) ** 2
        slope = (t * self.deviation**2 - (1 - t)) / variance
        return self.mean + slope * (x - t * self.mean)


def test_loss_regresses_the_difference_of_image_and_noise() -> None:
    images, noise = torch.randn(2, 5, 1, SIDE, SIDE)
    t, labels = torch.rand(5), torch.arange(5)
    network = Constant(0.25)
    loss = flow.flow_loss(network, images, noise, t, labels)
    assert loss.item() == pytest.approx((0.25 - (images - noise)).square().mean().item(), rel=1e-5)
    ((x, asked),) = network.asked
    assert torch.equal(asked, t)
    for row in range(5):
        torch.testing.assert_close(x[row], (1 - t[row]) * noise[row] + t[row] * images[row])


def test_exact_field_has_the_smallest_loss() -> None:
    torch.manual_seed(0)
    images = torch.randn(400, 1, SIDE, SIDE) * 0.5 + 0.3
    noise, t, labels = torch.randn_like(images), torch.rand(400), torch.zeros(400, dtype=torch.int64)
    exact, *others = (
        flow.flow_loss(Gaussian(*target), images, noise, t, labels).item()
        for target in ((0.3, 0.5), (0.35, 0.5), (0.3, 0.55), (0.25, 0.45))
    )
    assert exact < min(others)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("adams-bashforth", 2)])
@pytest.mark.parametrize("warp", [1.0, 1.5])
def test_steps_follow_the_field_of_a_normal_target(solver: Solver, order: int, warp: float) -> None:
    """The error falls with the steps' size as the order of the solver says."""
    z, labels = torch.randn(20, 1, SIDE, SIDE, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    mean, deviation = 0.3, 0.5
    errors = []
    for steps in (32, 64, 256):
        times = step_times(steps, warp)[:-1]  # the last step is always Euler's
        drawn = integrate(Gaussian(mean, deviation), z, labels, times, solver)
        # The field's flow is linear: z becomes t mean + the deviation at t times z.
        t = times[-1]
        exact = t * mean + math.sqrt(t**2 * deviation**2 + (1 - t) ** 2) * z
        errors.append((drawn - exact).abs().max().item())
    assert errors[1] == pytest.approx(errors[0] / 2**order, rel=0.25)
    assert errors[2] < 0.02


def test_a_line_through_two_velocities_makes_a_step_of_adams_and_bashforth() -> None:
    """A velocity that grows evenly with the time is followed exactly, whatever the steps' widths are."""

    class Rising(nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return (3 * t + 0 * labels).view(-1, 1, 1, 1).expand_as(x)

    z, labels, times = torch.randn(4, 1, SIDE, SIDE), torch.arange(4), [0.0, 0.1, 0.35, 0.75, 1.0]
    arrivals = list(path(Rising(), z, labels, times, "adams-bashforth"))
    assert arrivals[0] is z
    for (before, arrived), (time, following) in zip(pairwise(arrivals), pairwise(times), strict=True):
        by_euler = time == 0 or following == 1  # there is no velocity before the first
        way = 3 * time * (following - time) if by_euler else 1.5 * (following**2 - time**2)
        torch.testing.assert_close(arrived, before + way)


def test_one_step_of_straight_paths_is_exact() -> None:
    z, labels = torch.randn(3, 1, SIDE, SIDE), torch.arange(3)
    network = Constant(0.5)
    for steps in (1, 8):
        torch.testing.assert_close(integrate(network, z, labels, even(steps)), z + 0.5)
    assert [t.unique().item() for _, t in network.asked] == [0, *(step / 8 for step in range(8))]


def even(steps: int) -> list[float]:
    return [step / steps for step in range(steps + 1)]


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("warp", [1.0, 1.5, 3.0])
def test_steps_grow_and_the_network_is_asked_of_no_later_time_than_in_training(
    steps: int, warp: float
) -> None:
    times = step_times(steps, warp)
    assert (len(times), times[0], times[-1]) == (steps + 1, 0.0, 1.0)
    assert times[-2] == pytest.approx(1 - 1 / steps)
    widths = np.diff(times[:-1])
    assert (widths > 0).all()
    assert (np.diff(widths) >= -1e-12).all()
    if warp == 1.0:
        assert times == pytest.approx(even(steps))


def test_guidance_pushes_towards_what_only_the_class_has() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(200, 1, SIDE, SIDE) * 0.5, torch.arange(200) % 10
    images[labels == 3, :, :9] += 2.0
    network = flow.Velocity(FLOW)
    network.fit(images, labels)
    x, t = torch.randn(4, 1, SIDE, SIDE), torch.full((4,), 0.5)
    for label, pushed in ((3, True), (4, False)):
        asked = torch.full((4,), label)
        plain = network(x, t, asked)
        torch.testing.assert_close(flow.Guided(network, 0.0)(x, t, asked), plain)
        change = flow.Guided(network, 0.5)(x, t, asked) - plain
        assert (change[:, :, :9].mean() > 0.5) == pushed
        assert change[:, :, 9:].abs().mean() < change[:, :, :9].abs().mean()
        torch.testing.assert_close(flow.Guided(network, -0.5)(x, t, asked) - plain, -change)
    outside = torch.tensor([-1, 10, 11, 99])
    torch.testing.assert_close(flow.Guided(network, 0.5)(x, t, outside), network(x, t, outside))


def test_guidance_may_push_the_other_way() -> None:
    assert configured("flow", flow.CONFIG, ["guidance=-0.05"]).guidance == -0.05
    with pytest.raises(ArgumentError, match="expected -1 or more"):
        configured("flow", flow.CONFIG, ["guidance=-1.5"])
    config = dataclasses.replace(FLOW, guidance=-0.05)
    card = flow._card(config, flow.Velocity(config), [])
    assert "pushed away from the class by 0.05 times" in card.architecture


class Growing(nn.Module):
    """The field weight * x, whose Euler steps can be told without it."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.weight * x + 0 * (t * labels).view(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", get_args(Solver))
@pytest.mark.parametrize("step", range(4))
def test_images_are_read_that_the_field_has_drawn_itself(step: int, solver: Solver) -> None:
    torch.manual_seed(0)
    z, labels = torch.randn(5, 1, SIDE, SIDE), torch.tensor([0, 3, 3, 9, 5])
    reader, times, weight = (
        nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 10)),
        step_times(4, 1.5),
        0.7,
    )
    network = Growing(weight)
    loss = flow.misread(network, reader, z, labels, times, step, solver)
    *_, x = (each.detach() for each in path(network, z, labels, times[: step + 1], solver))
    learned = torch.tensor(weight, requires_grad=True)  # the steps before are held fixed
    logits = reader((x + (1 - times[step]) * learned * x + 1) / 2)
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, network.weight), torch.autograd.grad(expected, learned)
    )


def test_every_step_and_label_is_drawn_for_the_reader() -> None:
    config = dataclasses.replace(FLOW, steps=5, drawn=50)
    starts = [flow.draw_start(config, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {taken for _, _, taken in starts} == set(range(5))
    assert {label for _, labels, _ in starts for label in labels.tolist()} == set(range(10))
    z = torch.cat([each for each, _, _ in starts])
    assert z.shape == (2000, 1, SIDE, SIDE)
    assert (z.mean().item(), z.std().item()) == pytest.approx((0, 1), abs=0.01)


@pytest.mark.parametrize("solver", get_args(Solver))
@pytest.mark.parametrize("stride", [2, 3, 6])
def test_a_merged_step_arrives_where_the_teachers_steps_do(stride: int, solver: Solver) -> None:
    torch.manual_seed(0)
    z, labels = torch.randn(5, 1, SIDE, SIDE), torch.tensor([0, 3, 3, 9, 5])
    finer = step_times(6, 1.5)
    times = [*finer[:-1:stride], 1.0]
    network, teacher = Growing(0.7), Growing(0.4)
    loss, images = merged_steps_loss(network, teacher, z, labels, times, finer, solver)
    arrivals = dict(zip(finer, path(teacher, z, labels, finer, solver), strict=True))
    expected, learned = torch.tensor(0.0), torch.tensor(0.7, requires_grad=True)
    for start, end in pairwise(times):
        straight = (arrivals[end] - arrivals[start]).detach() / (end - start)
        expected = expected + (end - start) * (learned * arrivals[start].detach() - straight).square().mean()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(images, integrate(network, arrivals[times[-2]], labels, times[-2:]))
    gradients = torch.autograd.grad(loss, network.weight), torch.autograd.grad(expected, learned)
    torch.testing.assert_close(*gradients)
    loss, images = merged_steps_loss(teacher, teacher, z, labels, finer, finer)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(images, integrate(teacher, z, labels, finer))


def test_a_run_learns_to_merge_the_steps_of_its_teacher(tmp_path: Path, workshop: Workshop) -> None:
    teacher = str(workshop.runs / "flow")
    losses = {}
    for rate in (0.0, 5e-3):
        config = dataclasses.replace(FLOW, teacher=teacher, solver="euler", stride=3, learning_rate=rate)
        run = new_run(tmp_path / f"{rate}", config)
        flow.train(config, workshop.splits, run)
        losses[rate] = run.history[-1]["train_loss"]
    begun, still = (read_weights(Path(each)) for each in (teacher, tmp_path / "0.0"))
    assert [name for name in begun if not torch.allclose(begun[name], still[name])] == []
    assert losses[5e-3] < 0.9 * losses[0.0]


def test_a_discriminator_learns_along_and_changes_what_is_learned(tmp_path: Path, workshop: Workshop) -> None:
    plain = dataclasses.replace(FLOW, teacher=str(workshop.runs / "flow"), solver="euler", stride=3)
    changes: dict[str, dict[str, Any]] = {"none": {}, "own": {"adversary_weight": 0.05}}
    changes["classes"] = changes["own"] | {"adversary_class_weight": 5.0}
    histories, weights = {}, {}
    for name, change in changes.items():
        config = dataclasses.replace(plain, **change)
        run = new_run(tmp_path / name, config)
        flow.train(config, workshop.splits, run)
        histories[name], weights[name] = run.history[-1], read_weights(tmp_path / name)
    for name in ("own", "classes"):
        assert histories[name]["real_probability"] > histories[name]["fake_probability"]
        assert histories[name].keys() - histories["none"].keys() == {"real_probability", "fake_probability"}
        assert weights[name].keys() == weights["none"].keys()
    for one, other in combinations(weights.values(), 2):
        assert not torch.equal(one["head.weight"], other["head.weight"])


def test_an_adversary_without_a_teacher_is_one_line(tmp_path: Path, workshop: Workshop) -> None:
    config = dataclasses.replace(FLOW, adversary_weight=0.1)
    with pytest.raises(SourceError, match="expected 0 without a teacher"):
        flow.train(config, workshop.splits, new_run(tmp_path, config))


@pytest.mark.parametrize("change", [{"stride": 1}, {"stride": 2, "steps": 4}, {"stride": 2, "steps": 5}])
def test_a_teacher_with_other_steps_is_one_line(
    change: dict[str, Any], tmp_path: Path, workshop: Workshop
) -> None:
    config = dataclasses.replace(FLOW, teacher=str(workshop.runs / "flow"), solver="euler", **change)
    with pytest.raises(SourceError, match="expected some of the former"):
        flow.train(config, workshop.splits, new_run(tmp_path, config))


def test_a_step_that_replaces_others_is_straight(tmp_path: Path, workshop: Workshop) -> None:
    config = dataclasses.replace(FLOW, teacher=str(workshop.runs / "flow"), stride=2)
    with pytest.raises(SourceError, match="solver is adams-bashforth, expected euler"):
        flow.train(config, workshop.splits, new_run(tmp_path, config))


def test_a_run_begins_with_the_source_and_learns_to_be_read(tmp_path: Path, workshop: Workshop) -> None:
    source, reader = str(workshop.runs / "flow"), str(workshop.models / "cnn" / "1")
    config = dataclasses.replace(FLOW, epochs=1, source=source, learning_rate=0.0, drawn=8)
    flow.train(config, workshop.splits, new_run(tmp_path / "still", config))
    begun, still = (read_weights(Path(each)) for each in (source, tmp_path / "still"))
    assert [name for name in begun if not torch.allclose(begun[name], still[name])] == []
    losses = {}
    for weight in (0.0, 5.0):
        taught = dataclasses.replace(
            config, epochs=2, learning_rate=5e-3, reader=reader, reader_weight=weight
        )
        run = new_run(tmp_path / f"{weight}", taught)
        flow.train(taught, workshop.splits, run)
        losses[weight] = run.history[-1]["train_reading"]
    assert losses[5.0] < 0.8 * losses[0.0]


@pytest.mark.parametrize(("reader", "clipped"), [(True, True), (False, False)])
def test_the_gradients_of_a_run_with_a_reader_are_clipped(
    reader: bool, clipped: bool, tmp_path: Path, workshop: Workshop
) -> None:
    folder = str(workshop.models / "cnn" / "1") if reader else flow.NO_READER
    config = dataclasses.replace(FLOW, epochs=1, reader=folder, drawn=4, clip_norm=0.01)
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [weights.grad for group in optimizer.param_groups for weights in group["params"]]
        norms.append(float(nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_pre_hook(note)
    try:
        flow.train(config, workshop.splits, new_run(tmp_path, config))
    finally:
        hook.remove()
    assert norms
    assert {norm <= 1.001 * config.clip_norm for norm in norms} == {clipped}


@pytest.mark.parametrize(
    ("origin", "change", "message"),
    [
        ({"model": "gan"}, {}, "is a run of gan, expected one of flow or flow-distilled"),
        ({"data_digest": "0" * 64}, {}, "was trained on data with digest 0000"),
        ({}, {"channels_14": 16}, "holds a network with other layers"),
    ],
)
def test_a_source_of_another_kind_is_one_line(
    origin: dict[str, str], change: dict[str, Any], message: str, tmp_path: Path, workshop: Workshop
) -> None:
    made = {"model": "flow", "data_digest": workshop.splits.digest} | origin
    new_run(tmp_path / "earlier", FLOW, origin=made)
    shutil.copy(workshop.runs / "flow" / BEST_FILE, tmp_path / "earlier")
    config = dataclasses.replace(FLOW, source=str(tmp_path / "earlier"), **change)
    with pytest.raises((ExportError, SourceError), match=message):
        flow.train(config, workshop.splits, new_run(tmp_path / "later", config))


def test_a_run_of_either_model_can_be_the_source(tmp_path: Path, workshop: Workshop) -> None:
    made = {"model": "flow-distilled", "data_digest": workshop.splits.digest}
    new_run(tmp_path, FLOW, origin=made)
    shutil.copy(workshop.runs / "flow" / BEST_FILE, tmp_path)
    velocity = flow.Velocity(FLOW)
    flow.begin_with(velocity, tmp_path, workshop.splits)
    begun = read_weights(workshop.runs / "flow")
    assert [name for name, weights in velocity.state_dict().items() if not weights.equal(begun[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"guidance": 0.1}, {"guidance": 0.0}, {"guidance": 0.0, "steps": 1}])
def test_every_weight_is_read_back_from_a_graph(change: dict[str, Any], tmp_path: Path) -> None:
    """The exporter has its own names for some, and which they are depends on the graph."""
    config = dataclasses.replace(FLOW, **change)
    drawing, again = (
        flow.Drawing(network, config) for network in (trained_like(config), flow.Velocity(config))
    )
    onnx.save(to_onnx(drawing, flow.INPUTS, flow.OUTPUTS), tmp_path / MODEL_FILE)
    take_weights(again, tmp_path)
    read, made = again.state_dict(), drawing.state_dict()
    assert [name for name in made if not made[name].equal(read[name])] == []


def test_a_published_version_is_as_good_as_its_run(workshop: Workshop) -> None:
    velocity, config = flow.earlier(workshop.models / "flow" / "1", workshop.splits)
    best = read_weights(workshop.runs / "flow")
    assert [name for name, weights in velocity.state_dict().items() if not weights.equal(best[name])] == []
    assert flow.times_of(config) == flow.times_of(FLOW)


def test_a_version_without_a_record_of_its_run_is_no_source(tmp_path: Path, workshop: Workshop) -> None:
    shutil.copytree(workshop.models / "flow" / "1", tmp_path / "1")
    (tmp_path / "1" / CONFIG_FILE).unlink()
    with pytest.raises(SourceError, match="was published before export wrote one"):
        flow.earlier(tmp_path / "1", workshop.splits)


def test_a_run_is_not_taught_by_its_judge_or_by_another_network(tmp_path: Path, workshop: Workshop) -> None:
    judge = str(workshop.models / "cnn" / "1")
    both = dataclasses.replace(FLOW, judge=judge, reader=judge)
    with pytest.raises(SourceError, match="reader and judge are both"):
        flow.train(both, workshop.splits, new_run(tmp_path / "both", both))
    for name in ("gan", "nothing"):
        other = dataclasses.replace(FLOW, reader=str(workshop.models / name / "1"))
        with pytest.raises((SourceError, EvaluationError, RepositoryError)):
            flow.train(other, workshop.splits, new_run(tmp_path / name, other))


def test_fresh_network_follows_the_field_of_normal_pixels() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(200, 1, SIDE, SIDE) * 0.5 + 0.3, torch.arange(200) % 9
    network = flow.Velocity(FLOW)
    network.fit(images, labels)
    x, t = torch.randn(4, 1, SIDE, SIDE), torch.tensor([0.0, 0.3, 0.6, 0.9])
    asked = torch.tensor([2, 8, 9, 10])  # the last two have no images
    for row, some in enumerate((images[labels == 2], images[labels == 8], images, images)):
        exact = Gaussian(some.mean(0), some.std(0, correction=0))
        one = slice(row, row + 1)
        torch.testing.assert_close(network(x, t, asked)[one], exact(x[one], t[one], asked[one]))


def test_times_are_those_that_the_steps_ask_for() -> None:
    t = flow.draw_times(2000, 8, torch.Generator().manual_seed(0))
    assert t.min() >= 0
    assert 0.86 < t.max() <= 7 / 8
    assert t.mean().item() == pytest.approx(7 / 16, abs=4 * 7 / 8 / math.sqrt(12 * 2000))


def trained_like(config: flow.Config) -> flow.Velocity:
    """A network whose layers that begin at zero have other weights."""
    torch.manual_seed(0)
    network = flow.Velocity(config)
    network.fit(torch.rand(50, 1, SIDE, SIDE) * 2 - 1, torch.arange(50) % 10)
    for weights in network.parameters():
        nn.init.normal_(weights, 0.0, 0.2)
    return network


def test_an_image_does_not_depend_on_its_batch() -> None:
    drawing = flow.Drawing(trained_like(FLOW), FLOW)
    z, labels = torch.randn(6, flow.LATENT), torch.arange(6)
    together = drawing(z, labels).int()
    alone = torch.cat([drawing(z[row : row + 1], labels[row : row + 1]) for row in range(6)]).int()
    assert (together - alone).abs().max() <= 1  # a sum in another order may be rounded the other way
    assert len(together.unique()) > 50


def test_label_outside_the_classes_gives_an_image() -> None:
    drawing = flow.Drawing(trained_like(FLOW), FLOW)
    z = torch.randn(1, flow.LATENT).expand(4, -1)
    images = drawing(z, torch.tensor([1, 2, -1, 10])).int()
    assert not torch.equal(images[0], images[1])
    assert (images[2] - images[3]).abs().max() <= 1


@pytest.mark.parametrize("channels", [5, 8, 12, 16])
def test_any_number_of_channels_is_normalised(channels: int) -> None:
    maps = torch.randn(2, channels, 7, 7) * 3 + 5
    normalised = flow._norm(channels)(maps)
    assert normalised.mean((1, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(normalised.square().mean((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("helper", ["reader", "adversary"])
def test_resumed_run_with_a_helper_ends_with_the_same_bits(
    helper: str, tmp_path: Path, workshop: Workshop
) -> None:
    config = dataclasses.replace(FLOW, reader=str(workshop.models / "cnn" / "1"), drawn=4)
    if helper == "adversary":
        config = dataclasses.replace(FLOW, solver="euler", teacher=str(workshop.runs / "flow"), stride=3)
        config = dataclasses.replace(config, adversary_weight=0.05)
    flow.train(config, workshop.splits, new_run(tmp_path / "whole", config))
    cut = new_run(tmp_path / "cut", config, kind=StoppingRun)
    with pytest.raises(Interrupted):
        flow.train(config, workshop.splits, cut)
    flow.train(config, workshop.splits, new_run(tmp_path / "cut", config, resume=True))
    assert_same_state(tmp_path / "cut", tmp_path / "whole")


def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, workshop: Workshop) -> None:
    cut = new_run(tmp_path, FLOW, kind=StoppingRun)
    with pytest.raises(Interrupted):
        flow.train(FLOW, workshop.splits, cut)
    flow.train(FLOW, workshop.splits, new_run(tmp_path, FLOW, resume=True))
    assert_same_state(tmp_path, workshop.runs / "flow")


def test_published_flow_is_a_generator_of_noise_of_an_images_size(workshop: Workshop) -> None:
    folder = workshop.models / "flow" / "1"
    manifest = read_manifest(folder)
    assert (manifest.task, manifest.labels) == ("generation", workshop.splits.labels)
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)] == [
        ("z", "FP32", (-1, SIDE * SIDE)),
        ("label", "INT64", (-1,)),
        ("images", "UINT8", (-1, SIDE, SIDE)),
    ]
    assert manifest.metrics["samples"] == len(workshop.splits.test)
    assert manifest.metrics["classifier"] == "judge/1"
    assert np.asarray(Image.open(folder / flow.SAMPLES_FILE)).shape == (280, 280)


def test_published_flow_holds_each_weight_once_and_each_step(workshop: Workshop) -> None:
    graph = onnx.load(workshop.models / "flow" / "1" / "model.onnx").graph
    convolutions = [module for module in flow.Velocity(FLOW).modules() if isinstance(module, nn.Conv2d)]
    used = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert len(used) == FLOW.steps * len(convolutions)
    assert len(set(used)) == len(convolutions)
    held = sum(math.prod(weights.dims) for weights in graph.initializer)
    assert held < 1.1 * sum(weights.numel() for weights in flow.Velocity(FLOW).state_dict().values())


@pytest.mark.parametrize("stride", [2, 3, 8])
def test_the_drawing_takes_as_many_passes_as_the_strides_leave(stride: int) -> None:
    config = dataclasses.replace(FLOW, steps=8, stride=stride, guidance=0.0)
    network = Constant(0.5)
    drawing = flow.Drawing(flow.Velocity(config), config)
    drawing.velocity.velocity = network  # type: ignore[assignment]
    z = torch.randn(3, SIDE * SIDE)
    images = drawing(z, torch.tensor([1, 2, 3]))
    assert len(network.asked) == math.ceil(8 / stride)
    levels = (z.view(3, SIDE, SIDE) + 0.5 + 1) * 127.5  # a constant field, over a time of 1
    assert (images.float() - levels.clamp(0, 255)).abs().max() < 0.51


def test_published_flow_accepts_any_rows_and_labels(workshop: Workshop) -> None:
    session = open_session(workshop.models / "flow" / "1" / "model.onnx")
    z = np.random.default_rng(0).normal(size=(33, flow.LATENT)).astype(np.float32)
    labels = np.arange(33) % 10
    labels[5] = 99
    for rows in (1, 3, 33):
        (images,) = session.run(None, {"z": z[:rows], "label": labels[:rows]})
        assert images.shape == (rows, SIDE, SIDE)
        assert images.dtype == np.uint8


@pytest.mark.parametrize(
    ("coupling", "words"), [(1, "meets its own noise"), (512, "up to 512 images of a class")]
)
def test_card_says_how_noise_was_paired(coupling: int, words: str) -> None:
    config = dataclasses.replace(FLOW, coupling=coupling)
    assert words in flow._card(config, flow.Velocity(config), []).training


def test_card_says_what_a_run_began_with_and_who_read() -> None:
    plain = flow._card(FLOW, flow.Velocity(FLOW), [])
    assert "begins with" not in plain.training
    assert "cross-entropy" not in plain.training
    assert "clipped" not in plain.training
    assert "pushed towards the class by 0.25 times" in plain.architecture
    assert "in 3 steps of the two-step Adams-Bashforth method, which the graph holds" in plain.architecture
    config = dataclasses.replace(FLOW, source="runs/flow-1", reader="models/mlp/1", guidance=0.0)
    card = flow._card(config, flow.Velocity(config), [])
    assert "best weights of an earlier one, `runs/flow-1`." in card.training
    assert "weight 2, is the cross-entropy of a published classifier, `models/mlp/1`" in card.training
    assert "clipped to a norm of 0.3." in card.training
    assert "pushed" not in card.architecture


@pytest.mark.parametrize(
    ("stride", "steps", "passes"),
    [
        (4, "in 2 Euler steps, which the graph holds; they grow with the power 1.5.", "2 passes"),
        (8, "in one Euler step.", "one pass"),
    ],
)
def test_card_says_whose_steps_were_merged(stride: int, steps: str, passes: str) -> None:
    config = dataclasses.replace(FLOW, steps=8, solver="euler", teacher="runs/flow", stride=stride)
    card = flow._card(config, flow.Velocity(config), [])
    assert steps in card.architecture
    assert ("which all steps share" in card.architecture) == (stride < 8)
    assert f"costs {passes} through" in card.limits
    assert "begins with the best weights of an earlier one, `runs/flow`." in card.training
    assert "several steps of `runs/flow` do; AdamW" in card.training
    assert "flow matching" not in card.training
    assert "discriminator" not in card.training
    assert "clipped to a norm of 0.3." in card.training


def test_card_says_what_a_run_learned_to_pass_for() -> None:
    config = dataclasses.replace(
        FLOW, steps=8, solver="euler", teacher="runs/flow", stride=8, adversary_weight=0.02
    )
    card = flow._card(config, flow.Velocity(config), [])
    assert "A second loss, with weight 0.02, is the non-saturating one against a projection" in card.training
    assert "noise of 0.1 (learning rate 0.0003, R1 with gamma 0.1 every 16 steps)." in card.training
    config = dataclasses.replace(config, adversary_class_weight=0.5)
    card = flow._card(config, flow.Velocity(config), [])
    assert "the non-saturating one and the classes' cross-entropy (weight 0.5) against a" in card.training
    config = dataclasses.replace(config, reader="models/mlp/1")
    card = flow._card(config, flow.Velocity(config), [])
    assert "A second loss, with weight 2, is the cross-entropy of a published classifier" in card.training
    assert "A third loss, with weight 0.02, is the non-saturating one" in card.training
