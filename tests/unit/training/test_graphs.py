import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_runs import GAN
from training.families import gan
from training.runs.graphs import WARM_UP_STEPS, GraphedStep, make_capturable, set_rate
from training.runs.run import Run

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROWS, STEPS = 20, 12


@pytest.fixture(autouse=True)
def same_sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums are taken in the same order each time, so that runs can be compared closely."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_step_that_is_not_to_be_captured_runs_as_it_is() -> None:
    weights = torch.zeros(2)

    def step(x: Tensor) -> dict[str, Tensor]:
        return {"sum": weights.add_(x).sum()}

    graphed = GraphedStep(step, enabled=False)
    sums = [float(graphed(torch.ones(2))["sum"]) for _ in range(WARM_UP_STEPS + 3)]
    assert sums == [2.0 * n for n in range(1, WARM_UP_STEPS + 4)]
    assert not graphed.captured


def one_step(rate: float, capturable: bool) -> Tensor:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=1.0, fused=True)
    if capturable:
        make_capturable(optimizer, torch.device("cpu"))
    (group,) = optimizer.param_groups
    before = group["lr"]
    set_rate(optimizer, rate)
    assert (group["lr"] is before) == capturable
    weight.grad = torch.tensor([1.0, 2.0, -3.0])
    optimizer.step()
    return weight.detach()


def test_a_rate_on_the_device_moves_the_weights_as_far() -> None:
    # The rate is float32 as a tensor and float64 as a number.
    torch.testing.assert_close(one_step(0.25, capturable=True), one_step(0.25, capturable=False))


def new_run(folder: Path, config: gan.Config, device: Any, graphs: bool, resume: bool = False) -> Run:
    return Run(
        folder,
        dataclasses.asdict(config),
        epochs=config.epochs,
        seed=3,
        device=device,
        precision=config.precision,
        resume=resume,
        cuda_graphs=graphs,
    )


def train_steps(run: Run, config: gan.Config, first: int, last: int) -> tuple[dict[str, Tensor], bool]:
    """Take some of the steps of a run, write a checkpoint; returns all its weights, and whether by graphs."""
    device = run.fabric.device
    two = gan.Adversaries(config, run, gan.Generator(config))
    run.restore(two.state)
    if run.cuda_graphs:
        two.make_capturable()
    plain, regularised = gan.graphed_steps(two, *data(device), enabled=run.cuda_graphs)
    for step in range(first, last):
        two.set_rate(step / STEPS)
        rows = torch.randperm(60, generator=torch.Generator().manual_seed(step))[:ROWS].to(device)
        random = torch.Generator().manual_seed(step)
        inputs = [rows, torch.randn(ROWS, config.latent, generator=random).to(device)]
        if config.noise:
            inputs.append(torch.randn(2, ROWS, 1, 28, 28, generator=random).to(device))
        metrics = (regularised if step % 2 == 0 else plain)(*inputs)
        run.check_loss(0, step, torch.stack(list(metrics.values())))
    run.end_epoch(len(run.history), two.state, {"loss": 0.0})
    weights = {
        f"{name}.{key}": value.float().cpu().clone()
        for name in ("generator", "discriminator", "ema")
        for key, value in two.state[name].state_dict().items()
    }
    return weights, plain.captured and regularised.captured


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (60, 1, 28, 28), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8).to(device), (torch.arange(60) % 10).to(device)


CONFIGS = [
    GAN,
    dataclasses.replace(
        GAN,
        pairing="relativistic",
        r2_gamma=1.0,
        discriminator_channels_28=3,
        learning_rate_end=0.1,
        class_weight=0.5,
        rate_ratio=3.0,
        warm_up=0.5,
        noise=0.1,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "relativistic"])
def test_steps_on_a_cpu_are_never_captured_and_resume_with_the_same_bits(
    tmp_path: Path, config: gan.Config
) -> None:
    whole, captured = train_steps(new_run(tmp_path / "whole", config, "cpu", True), config, 0, STEPS)
    assert not captured
    train_steps(new_run(tmp_path / "cut", config, "cpu", True), config, 0, 5)
    rest, _ = train_steps(new_run(tmp_path / "cut", config, "cpu", True, resume=True), config, 5, STEPS)
    assert [name for name, value in whole.items() if not torch.equal(value, rest[name])] == []


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "relativistic"])
def test_replayed_steps_move_the_weights_as_launched_ones_do(
    tmp_path: Path, config: gan.Config, precision: Any
) -> None:
    config = dataclasses.replace(config, precision=precision)
    launched, captured = train_steps(new_run(tmp_path / "a", config, "cuda", False), config, 0, STEPS)
    assert not captured
    replayed, captured = train_steps(new_run(tmp_path / "b", config, "cuda", True), config, 0, STEPS)
    assert captured
    # The same kernels run, but the rate is float32 in one and float64 in the other. A step moves a weight by
    # up to 2e-4; where gradients are rounded to bfloat16, a last bit may decide its direction.
    torch.testing.assert_close(replayed, launched, rtol=0, atol=1e-5 if precision == "32-true" else 1e-3)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("graphs", [(True, True), (True, False), (False, True)])
def test_a_run_with_graphs_resumes_with_and_without_them(tmp_path: Path, graphs: tuple[bool, bool]) -> None:
    config = CONFIGS[1]
    whole, _ = train_steps(new_run(tmp_path / "whole", config, "cuda", False), config, 0, 2 * STEPS)
    train_steps(new_run(tmp_path / "cut", config, "cuda", graphs[0]), config, 0, STEPS)
    resumed = new_run(tmp_path / "cut", config, "cuda", graphs[1], resume=True)
    rest, captured = train_steps(resumed, config, STEPS, 2 * STEPS)
    assert captured == graphs[1]
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-4)  # twice as many steps as above


@pytest.mark.gpu
@GPU
def test_a_step_that_waits_for_the_device_is_launched_kernel_by_kernel(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = torch.zeros(2, device="cuda")

    def step(x: Tensor) -> dict[str, Tensor]:
        total = weights.add_(x).sum()
        return {"sum": total * (1 if total.item() > 0 else -1)}

    graphed = GraphedStep(step, enabled=True)
    sums = [float(graphed(torch.ones(2, device="cuda"))["sum"]) for _ in range(WARM_UP_STEPS + 3)]
    assert sums == [2.0 * n for n in range(1, WARM_UP_STEPS + 4)]
    assert not graphed.captured
    assert "a step cannot be captured in a CUDA graph" in capsys.readouterr().err
