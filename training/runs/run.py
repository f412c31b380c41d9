"""One training run: its folder, devices, seeds, checkpoints and metrics. Knows nothing of any model.

A run's folder holds config.json (every hyperparameter, the command and the commit), checkpoint.pt (the
whole state after the last finished epoch), best.safetensors (the weights of the best epoch, for runs that
give a score), metrics.jsonl (one line per epoch), curves.png and logs/ (the same metrics for other tools).
All but the logs, which follow the checkpoint, are replaced atomically, so a run may be killed at any time;
`resume` continues after the last finished epoch. All randomness is keyed by (seed, epoch, step), never
drawn from a stream that a restart would lose, so on one CPU process a resumed run ends with the same bits
as one that was never interrupted.

How a model uses it (see training/families/classifier.py):

    run = Run(folder, asdict(config), epochs=config.epochs, seed=config.seed, ...)
    model, optimizer = run.fabric.setup(model, optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "ema": ema}
    run.restore(state)
    for epoch in run.epochs():
        for step, rows in run.batches(epoch, len(images), batch_size):
            ... run.generator(epoch, step) ...
        run.end_epoch(epoch, state, {"train_loss": run.mean(loss)}, score=..., best=ema.module)
    run.finish()
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Protocol, cast, get_args

import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from training.errors import DivergenceError, RunError
from training.files import write_atomically
from training.provenance.commit import commit
from training.runs.curves import plot
from training.runs.float32 import keep_float32
from training.runs.loggers import Loggers
from training.runs.progress import Progress, summary
from training.terminal import command_line, notice

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

CHECKPOINT_FILE = "checkpoint.pt"
BEST_FILE = "best.safetensors"
OLD_BEST_FILE = "best.pt"  # of runs that were started before the weights were safetensors
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"

LOSS_CHECK_STEPS = 100

# The interval of the progress lines where no terminal shows a progress bar.
PROGRESS_SECONDS = 30.0


class Stateful(Protocol):
    """An object that a checkpoint can hold: a module, an optimiser, a scheduler, averaged weights."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore a state that `state_dict` returned."""


class Run:
    """One training run, in one process or in all those of `torchrun`.

    folder: created if missing. hyperparameters: plain values; a resumed run must have the same ones.
    fabric: Lightning Fabric, launched; use its `setup`, `device`, `backward` and `autocast`.
    history: the metrics of the finished epochs, one dict per epoch.
    best_score: the highest score so far, -inf before the first.
    cuda_graphs: whether a model may replay its steps as CUDA graphs. config.json records it, but not as a
        hyperparameter: a run may be resumed with the other choice.
    """

    def __init__(
        self,
        folder: Path,
        hyperparameters: Mapping[str, float | int | str | bool | None],
        *,
        epochs: int,
        seed: int,
        device: Device = "auto",
        precision: Precision = "32-true",
        resume: bool = False,
        progress_seconds: float = PROGRESS_SECONDS,
        on_epoch: Callable[[Mapping[str, float]], None] | None = None,
        loggers: Sequence[str] = (),
        cuda_graphs: bool = True,
    ) -> None:
        """Open the folder and launch Fabric.

        progress_seconds: the interval of the progress lines, if stderr is not a terminal.
        on_epoch: called in every process with an epoch's metrics, after its checkpoint is written. What
            it raises ends the run, which can be resumed.
        loggers: see training/runs/loggers.py.
        cuda_graphs: whether a model may replay its steps as CUDA graphs (training/runs/graphs.py).
        Raises RunError if the folder holds a run and `resume` is false, if it holds one with other
        hyperparameters, or if the device is missing.
        """
        self.folder = folder
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self.best_score = -math.inf
        self._total_epochs = epochs
        self._saved: dict[str, Any] | None = None
        self._bad_step: Tensor | None = None
        self._last_loss: Tensor | None = None
        self._on_epoch = on_epoch
        self._epoch_started = time.monotonic()
        self._progress = Progress(epochs, progress_seconds, self._epoch_started)
        self.fabric = _fabric(device, precision)
        self.cuda_graphs = cuda_graphs and self._can_capture(precision)
        torch.manual_seed(self.key())
        self._open(dict(hyperparameters) | {"precision": precision, "seed": seed, "epochs": epochs}, resume)
        self._loggers = Loggers(loggers if self.leads else (), folder, self.history)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the progress: rank 0 of all."""
        return self.fabric.is_global_zero

    def key(self, *parts: int) -> int:
        """A seed for a point in the run, such as (epoch, step); the same in every process."""
        text = ",".join(str(part) for part in (self.seed, *parts))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    def generator(self, *parts: int) -> torch.Generator:
        """A generator on the run's device, keyed by (seed, parts, rank): for augmentation and noise."""
        generator = torch.Generator(self.fabric.device)
        return generator.manual_seed(self.key(*parts, self.fabric.global_rank))

    def restore(self, state: Mapping[str, Stateful]) -> None:
        """Load the checkpoint into the given objects if a run is being resumed."""
        if self._saved is None:
            return
        for name, part in state.items():
            part.load_state_dict(self._saved["state"][name])
        self._saved = None

    def epochs(self) -> Iterator[int]:
        """The remaining epochs, counted from 0; torch's global seed is set anew before each.

        Dropout draws from the global seed, which differs from process to process.
        """
        for epoch in range(len(self.history), self._total_epochs):
            torch.manual_seed(self.key(epoch, self.fabric.global_rank))
            self._epoch_started = time.monotonic()
            yield epoch

    def batches(self, epoch: int, rows: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Shuffle the rows for an epoch: (step, this process's row numbers, int64, on the device).

        batch_size counts the rows of all processes together; an incomplete last batch is skipped.
        """
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.key(epoch)))
        order = order.to(self.fabric.device)
        steps, share = rows // batch_size, batch_size // self.fabric.world_size
        if steps == 0 or share == 0:
            raise RunError(
                f"batch size {batch_size} does not fit {rows} rows on {self.fabric.world_size} processes"
            )
        first = self.fabric.global_rank * share
        for step in self.steps(epoch, steps):
            start = step * batch_size + first
            yield step, order[start : start + share]

    def steps(self, epoch: int, count: int) -> Iterator[int]:
        """The steps of an epoch, counted from 0, with their progress on stderr."""
        hidden = not (self.leads and sys.stderr.isatty())
        title = f"epoch {epoch + 1}/{self._total_epochs}"
        for step in tqdm(range(count), desc=title, disable=hidden, leave=False, unit="step"):
            yield step
            if hidden and self.leads:
                self._report(epoch, step, count)

    def _report(self, epoch: int, step: int, steps: int) -> None:
        losses = () if self._last_loss is None else self._last_loss.flatten()
        line = self._progress.step(epoch, step, steps, losses, time.monotonic())
        if line is not None:
            notice(line)

    def check_loss(self, epoch: int, step: int, loss: Tensor) -> None:
        """Note whether a step's loss is finite. Raises DivergenceError with the step at which it was not.

        The device is asked every LOSS_CHECK_STEPS steps, and by `end_epoch`: each time it must be waited for.
        """
        self._last_loss = loss.detach()
        bad = self._bad_step
        if bad is None:
            bad = torch.full((), -1, device=self.fabric.device)
        first = (bad < 0) & ~loss.detach().isfinite().all()
        # Not torch.where with a number: that copies the number to the GPU, and waits for it.
        self._bad_step = bad + first * (step - bad)
        if step % LOSS_CHECK_STEPS == LOSS_CHECK_STEPS - 1:
            self._require_finite(epoch, {})

    def _require_finite(self, epoch: int, metrics: Mapping[str, float]) -> None:
        bad, self._bad_step = self._bad_step, None
        if bad is not None and int(bad) >= 0:
            raise DivergenceError(
                f"the loss is not finite at step {int(bad) + 1} of epoch {epoch + 1}, expected a number: "
                f"try a lower learning rate. {self.folder} keeps the {len(self.history)} epochs before"
            )
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"{name} is {value} after epoch {epoch + 1}, expected a finite number. "
                    f"{self.folder} keeps the {len(self.history)} epochs before"
                )

    def mean(self, value: Tensor | float) -> float:
        """The mean over all processes of a scalar that each has; every process must call it."""
        tensor = torch.as_tensor(value, dtype=torch.float32, device=self.fabric.device).detach()
        return float(cast("Tensor", self.fabric.all_reduce(tensor, reduce_op="mean")))

    def end_epoch(
        self,
        epoch: int,
        state: Mapping[str, Stateful],
        metrics: Mapping[str, float],
        *,
        score: float | None = None,
        best: torch.nn.Module | None = None,
    ) -> None:
        """Record an epoch's metrics and write the checkpoint; every process must call it.

        Raises DivergenceError, and writes nothing, if a loss of the epoch or a metric is not finite.
        score: higher is better; the weights of `best` at the highest score are kept in best.safetensors.
        """
        self._require_finite(epoch, metrics)
        seconds = round(time.monotonic() - self._epoch_started, 1)
        self.history.append({"epoch": epoch + 1, **metrics, "seconds": seconds})
        improved = score is not None and score > self.best_score
        if score is not None and improved:
            self.best_score = score
        if self.leads:
            # Write the best weights first: if killed in between, the epoch is repeated with the same result.
            if improved and best is not None:
                write_atomically(self.folder / BEST_FILE, to_safetensors(best.state_dict()))
                (self.folder / OLD_BEST_FILE).unlink(missing_ok=True)
            _save(self.folder / CHECKPOINT_FILE, self._checkpoint(state))
            self._write_metrics()
            self._loggers.log(self.history[-1])
        self.fabric.barrier()
        if self._on_epoch is not None:
            self._on_epoch(self.history[-1])

    def finish(self) -> None:
        """Draw curves.png from the metrics."""
        if self.leads and self.history:
            plot(self.history, self.folder / CURVES_FILE)
        self.fabric.barrier()

    def _open(self, config: dict[str, Any], resume: bool) -> None:
        path = self.folder / CHECKPOINT_FILE
        config_path = self.folder / CONFIG_FILE
        if path.exists():
            if not resume:
                raise RunError(
                    f"{self.folder} already holds a run: continue it with --resume, or give another --run-dir"
                )
            self._check_unchanged(config, json.loads(config_path.read_text())["hyperparameters"])
            self._saved = _load(path, self.fabric.device)
            self.history = self._saved["history"]
            self.best_score = self._saved["best_score"]
        self._check_shared()
        if self.leads:
            if resume:
                notice(f"{self.folder}: {len(self.history)} of {self._total_epochs} epochs are done")
            self.folder.mkdir(parents=True, exist_ok=True)
            record = {
                "command": command_line(),
                "hyperparameters": config,
                "torch": torch.__version__,
                "commit": commit() or None,
                "threads": torch.get_num_threads(),
                "world_size": self.fabric.world_size,
                "device": self.fabric.device.type,
                "cuda_graphs": self.cuda_graphs,
            }
            write_atomically(config_path, (json.dumps(record, indent=2) + "\n").encode())
        self.fabric.barrier()

    def _can_capture(self, precision: Precision) -> bool:
        """Whether steps may be captured. DDP and the loss scaling of float16 do work that a graph lacks."""
        if self.fabric.device.type != "cuda":
            return False
        if self.fabric.world_size > 1 or precision == "16-mixed":
            notice("no CUDA graphs: they need one process, and 32-true or bf16-mixed")
            return False
        return True

    def _check_shared(self) -> None:
        """Raise RunError unless all processes have read the same checkpoint, or none."""
        epochs = len(self.history)
        if self.mean(float(epochs)) != epochs or self.mean(float(epochs**2)) != epochs**2:
            raise RunError(
                f"not all processes see {epochs} finished epochs in {self.folder}: "
                "expected a folder that all nodes share"
            )

    def _check_unchanged(self, config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        changed = [
            f"{name} is {config.get(name)!r}, was {saved.get(name)!r}"
            for name in sorted({*config, *saved})
            if config.get(name) != saved.get(name)
        ]
        if changed:
            raise RunError(f"{self.folder} was started with other hyperparameters: {'; '.join(changed)}")

    def _checkpoint(self, state: Mapping[str, Stateful]) -> dict[str, Any]:
        return {
            "state": {name: part.state_dict() for name, part in state.items()},
            "history": self.history,
            "best_score": self.best_score,
        }

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_atomically(self.folder / METRICS_FILE, lines.encode())
        notice(summary(self.history[-1]))


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return {name: saved[name] for name in ("state", "history", "best_score")}
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError, UnpicklingError) as error:
        first = str(error).partition("\n")[0]
        raise RunError(
            f"{path} cannot be read ({first}), expected a whole checkpoint: give another --run-dir"
        ) from None


def to_safetensors(weights: Mapping[str, Tensor]) -> bytes:
    """Weights by name, as safetensors: a format that holds tensors and nothing that could run."""
    # Copies, because the format knows neither memory formats nor two names for the same memory.
    copies = {
        name: torch.clone(each, memory_format=torch.contiguous_format) for name, each in weights.items()
    }
    return safetensors.torch.save(copies, {"format": "pt"})


def _save(path: Path, content: Mapping[str, Any]) -> None:
    buffer = BytesIO()
    torch.save(dict(content), buffer)
    write_atomically(path, buffer.getvalue())


def _fabric(device: Device, precision: Precision) -> Fabric:
    """Fabric on one device, or on every process that torchrun started (DDP; gloo on CPU)."""
    if device not in get_args(Device):
        raise RunError(f"device is {device!r}, expected one of {', '.join(get_args(Device))}")
    keep_float32()
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise RunError("device is 'cuda', but torch sees no CUDA device")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="cuda" if cuda and device != "cpu" else "cpu",
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric
