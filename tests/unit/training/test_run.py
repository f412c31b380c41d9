import json
import math
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.idx_files import write_folder
from training.errors import DivergenceError, ExportError, RunError
from training.provenance.commit import commit
from training.runs.averaging import averaged
from training.runs.finished import load_weights
from training.runs.run import BEST_FILE, CHECKPOINT_FILE, CONFIG_FILE, METRICS_FILE, OLD_BEST_FILE, Run

# The smaller of the two classifiers, on 220 images: an epoch takes a fraction of a second.
TRAIN = [sys.executable, "-m", "training", "train", "cnn", "--device", "cpu", "--threads", "1"]
TRAIN += ["--epochs", "4", "--set", "batch_size=20"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def new_run(
    folder: Path,
    epochs: int = 3,
    resume: bool = False,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    **hyperparameters: float,
) -> Run:
    return Run(folder, hyperparameters, epochs=epochs, seed=7, device="cpu", resume=resume, on_epoch=on_epoch)


def train(run: Run, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """Train a small network with dropout and noise, which draw from both kinds of generator."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    ema = averaged(model, 0.9)
    wrapped, optimizer = run.fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    state = {"model": wrapped, "optimizer": optimizer, "scheduler": scheduler, "ema": ema}
    run.restore(state)
    rows = torch.arange(40, dtype=torch.float32).reshape(10, 4)
    for epoch in run.epochs():
        wrapped.train()
        for step, chosen in run.batches(epoch, 10, 4):
            noise = torch.randn((4, 4), generator=run.generator(epoch, step))
            loss = wrapped(rows[chosen] / 40 + noise).square().mean()
            optimizer.zero_grad()
            run.fabric.backward(loss)
            optimizer.step()
            scheduler.step()
            ema.update_parameters(model)
        run.end_epoch(epoch, state, {"train_loss": run.mean(loss)}, score=-epoch, best=model)
        if stop_after == epoch + 1:
            break
    return {
        f"{name}.{key}": value for name in ("model", "ema") for key, value in state[name].state_dict().items()
    }


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = train(new_run(tmp_path / "whole"))
    train(new_run(tmp_path / "cut"), stop_after=1)
    resumed = new_run(tmp_path / "cut", resume=True)
    assert_equal(train(resumed), whole)
    losses = [line["train_loss"] for line in metrics(tmp_path / "whole")]
    assert [line["train_loss"] for line in resumed.history] == losses


def test_finished_run_can_be_resumed_and_does_nothing(tmp_path: Path) -> None:
    whole = train(new_run(tmp_path))
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    assert_equal(train(new_run(tmp_path, resume=True)), whole)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    assert_equal(train(new_run(tmp_path / "a", resume=True)), train(new_run(tmp_path / "b")))


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(new_run(tmp_path), stop_after=1)
    with pytest.raises(RunError, match="already holds a run: continue it with --resume"):
        new_run(tmp_path)


def test_resume_refuses_changed_hyperparameters(tmp_path: Path) -> None:
    train(new_run(tmp_path, rate=0.1, width=3), stop_after=1)
    with pytest.raises(RunError, match=r"epochs is 5, was 3; rate is 0\.2, was 0\.1$"):
        new_run(tmp_path, resume=True, epochs=5, rate=0.2, width=3)


def test_on_epoch_gets_each_epochs_metrics_and_may_end_the_run(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def stop_after_two(metrics: Mapping[str, float]) -> None:
        seen.append(dict(metrics))
        if metrics["epoch"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(new_run(tmp_path / "cut", on_epoch=stop_after_two))
    assert seen == metrics(tmp_path / "cut")
    assert [line["epoch"] for line in seen] == [1, 2]
    resumed = train(new_run(tmp_path / "cut", resume=True))
    assert_equal(resumed, train(new_run(tmp_path / "whole")))


@pytest.mark.parametrize("step", [0, 3, 150])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step(tmp_path: Path, step: int) -> None:
    train(new_run(tmp_path, epochs=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = new_run(tmp_path / "bad")

    def go_on() -> None:
        for each in range(step + 200):
            run.check_loss(2, each, torch.tensor(math.nan if each >= step else 1.0))

    with pytest.raises(DivergenceError, match=rf"loss is not finite at step {step + 1} of epoch 3"):
        go_on()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path, value: float) -> None:
    train(new_run(tmp_path), stop_after=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = new_run(tmp_path, resume=True)
    with pytest.raises(
        DivergenceError, match=r"validation_loss is (nan|inf) after epoch 2, .* keeps the 1 epochs"
    ):
        run.end_epoch(1, {}, {"validation_loss": value})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_clear_error(tmp_path: Path, kept: float) -> None:
    train(new_run(tmp_path), stop_after=1)
    path = tmp_path / CHECKPOINT_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read \(.*\), expected a whole checkpoint"):
        new_run(tmp_path, resume=True)


def test_a_log_without_a_terminal_shows_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, {}, epochs=2, seed=7, device="cpu", progress_seconds=0)
    for epoch in run.epochs():
        for step, _ in run.batches(epoch, 10, 4):
            run.check_loss(epoch, step, torch.tensor(0.5 + step))
    lines = [line.split("  ")[:3] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        [f"epoch {epoch}/2", f"step {step}/2", f"loss {step - 0.5}"] for epoch in (1, 2) for step in (1, 2)
    ]


def test_config_records_the_commit_the_threads_and_the_processes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    new_run(tmp_path)
    record = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (record["threads"], record["world_size"]) == (1, 1)
    assert record["commit"] == (commit() or None)


def test_best_weights_have_the_highest_score(tmp_path: Path) -> None:
    train(new_run(tmp_path / "first"), stop_after=1)
    run = new_run(tmp_path / "all")
    train(run)
    first, best = (load_file(tmp_path / name / BEST_FILE) for name in ("first", "all"))
    assert_equal(best, first)
    assert run.best_score == 0


def test_weights_in_any_memory_format_are_kept_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network[1].num_batches_tracked += 7
    run = new_run(tmp_path)
    run.end_epoch(0, {}, {}, score=1.0, best=network)
    copy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load_weights(copy, tmp_path)
    assert_equal(copy.state_dict(), network.state_dict())
    content = (tmp_path / BEST_FILE).read_bytes()
    run.end_epoch(1, {}, {}, score=2.0, best=network)
    assert (tmp_path / BEST_FILE).read_bytes() == content


def test_weights_of_an_older_run_are_read_until_better_ones_replace_them(tmp_path: Path) -> None:
    old, better, seen = (nn.Linear(2, 3) for _ in range(3))
    torch.save(old.state_dict(), tmp_path / OLD_BEST_FILE)
    load_weights(seen, tmp_path)
    assert_equal(seen.state_dict(), old.state_dict())
    new_run(tmp_path).end_epoch(0, {}, {}, score=1.0, best=better)
    assert not (tmp_path / OLD_BEST_FILE).exists()
    load_weights(seen, tmp_path)
    assert_equal(seen.state_dict(), better.state_dict())


@pytest.mark.parametrize("name", [BEST_FILE, OLD_BEST_FILE])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 100])
def test_weights_that_cannot_be_read_are_one_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=r"best\.\w+ cannot be read \(.*\), expected the weights"):
        load_weights(nn.Linear(2, 3), tmp_path)


def test_batches_hold_every_row_once_in_a_new_order(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    orders = [torch.cat([rows for _, rows in run.batches(epoch, 12, 4)]).tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == list(range(12))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_incomplete_last_batch_is_skipped(tmp_path: Path) -> None:
    assert [len(rows) for _, rows in new_run(tmp_path).batches(0, 11, 4)] == [4, 4]


def test_batch_larger_than_the_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="batch size 5 does not fit 4 rows"):
        next(iter(new_run(tmp_path).batches(0, 4, 5)))


def test_keys_differ_by_place_and_seed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    other = Run(tmp_path / "other", {}, epochs=1, seed=8, device="cpu")
    assert len({run.key(), run.key(0), run.key(0, 1), run.key(1, 0), other.key(0)}) == 5
    assert run.key(3, 4) == new_run(tmp_path / "again").key(3, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_missing_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="torch sees no CUDA device"):
        Run(tmp_path, {}, epochs=1, seed=0, device="cuda")


def messages(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    return iter(process.stderr.readline, "")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, data_dir: Path, how: signal.Signals) -> None:
    command = [*TRAIN, "--data-dir", str(data_dir)]
    with subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "cut")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert any(line.startswith("epoch 1 ") for line in messages(process))
        process.send_signal(how)
        said = "".join(messages(process))
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert "Traceback" not in said
    subprocess.run([*command, "--run-dir", str(tmp_path / "cut"), "--resume"], check=True)
    subprocess.run([*command, "--run-dir", str(tmp_path / "whole")], check=True)
    cut, whole = (torch.load(tmp_path / name / CHECKPOINT_FILE) for name in ("cut", "whole"))
    for part in ("model", "ema"):
        assert_equal(cut["state"][part], whole["state"][part])
    assert len(cut["history"]) == 4


def two_nodes(tmp_path: Path, data_dir: Path, run_dirs: tuple[str, str], *more: str) -> list[tuple[int, str]]:
    """Train as two nodes of one process each: their exit codes, and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for rank, run_dir in enumerate(run_dirs):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command = [*torchrun, *TRAIN[1:], "--data-dir", str(data_dir), "--run-dir", str(tmp_path / run_dir)]
        nodes.append(subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True))
    said = [node.communicate(timeout=240)[1] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, said, strict=True)]


@pytest.mark.slow
def test_two_nodes_train_as_two_processes_of_one_node_do(tmp_path: Path, data_dir: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, *TRAIN[1:], "--data-dir", str(data_dir), "--run-dir", str(tmp_path / "node")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = two_nodes(tmp_path, data_dir, ("nodes", "nodes"))
    assert (first[0], second[0]) == (0, 0), first[1] + second[1]
    for said in (done.stderr, first[1]):  # only one process reports
        assert said.count("epoch 1 ") == 1
    assert "epoch 1 " not in second[1]
    nodes, node = (torch.load(tmp_path / name / CHECKPOINT_FILE) for name in ("nodes", "node"))
    assert_equal(nodes["state"]["ema"], node["state"]["ema"])
    for name in ("node", "nodes"):
        assert [line["epoch"] for line in metrics(tmp_path / name)] == [1, 2, 3, 4]
        config = json.loads((tmp_path / name / CONFIG_FILE).read_text())
        assert config["hyperparameters"]["batch_size"] == 20
        assert config["command"].startswith("python -m training train cnn")
        assert config["world_size"] == 2


@pytest.mark.nightly
@pytest.mark.slow
def test_nodes_that_do_not_share_the_folder_cannot_resume(tmp_path: Path, data_dir: Path) -> None:
    alone = [*TRAIN, "--data-dir", str(data_dir), "--run-dir", str(tmp_path / "first")]
    subprocess.run(alone, capture_output=True, check=True)
    ends = two_nodes(tmp_path, data_dir, ("first", "second"), "--resume")
    assert all(code != 0 for code, _ in ends)
    assert any("expected a folder that all nodes share" in said for _, said in ends), ends
