"""One worker: a process that trains trials, one after the other, until the study has enough."""

import contextlib
import importlib
import io
import multiprocessing
import os
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from optuna.exceptions import TrialPruned
from optuna.study import Study
from optuna.trial import Trial, TrialState
from tqdm import tqdm  # type: ignore[import-untyped]

from service.errors import RepositoryError
from training.datasets.splits import Splits, load
from training.errors import DivergenceError, TrainingError
from training.runs.inputs import record_of
from training.runs.run import BEST_FILE, CHECKPOINT_FILE, Run
from training.tuning.plan import Plan
from training.tuning.study import ask, is_default, open_study

LOG_FILE = "training.log"


def work(plan: Plan, problems: Connection) -> None:
    """Train trials on one thread. Sends (exit status, message) through `problems` if it must stop early."""
    torch.set_num_threads(1)
    # tqdm's own lock is a semaphore, which Python would report on stderr if this process is killed.
    tqdm.set_lock(threading.RLock())
    try:
        with open_study(plan) as study:
            with contextlib.redirect_stderr(io.StringIO()):  # the parent has shown notices about the data
                splits = load(plan.data_dir)
            while (trial := ask(plan, study)) is not None:
                trial.set_user_attr("worker", os.getpid())
                _finish(plan, study, trial, splits)
    except (TrainingError, RepositoryError) as error:
        problems.send((2, str(error)))
    except OSError as error:
        problems.send((1, str(error)))


def _finish(plan: Plan, study: Study, trial: Trial, splits: Splits) -> None:
    """Train one trial and tell the study its value."""
    values = _Values(plan, trial)
    state = TrialState.COMPLETE
    try:
        _train(plan, trial, splits, values)
    except TrialPruned:
        state = TrialState.PRUNED
    except DivergenceError as error:  # worse than any value, which is what the sampler takes it for
        trial.set_user_attr("reason", str(error))
        state = TrialState.PRUNED
    study.tell(trial, values.best if state == TrialState.COMPLETE else None, state=state)


class _Values:
    """Hands a run's metrics to the study after each epoch, and ends the run if it is to be pruned."""

    def __init__(self, plan: Plan, trial: Trial) -> None:
        self.best: float | None = None
        self._plan = plan
        self._trial = trial
        self._prunable = not is_default(plan, trial)  # the others are compared with it
        self._seconds = 0.0

    def __call__(self, metrics: Mapping[str, float]) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # nobody would read the result; the next command loses this trial
        space, epoch = self._plan.space, int(metrics["epoch"])
        value = metrics[space.metric]
        self._seconds += metrics["seconds"]
        if self.best is None or (value > self.best if space.maximize else value < self.best):
            self.best = value
            self._trial.set_user_attr("best_epoch", dict(metrics))
        self._trial.set_user_attr("seconds", round(self._seconds, 1))
        self._trial.report(value, epoch)
        # After its last epoch a trial is complete, whatever its value.
        if epoch < self._plan.config.epochs and self._prunable and self._trial.should_prune():
            raise TrialPruned


def _train(plan: Plan, trial: Trial, splits: Splits, values: _Values) -> None:
    changes, folder = plan.changes(trial.params), plan.run_folder(trial.number)
    trial.set_user_attr("changes", changes)
    folder.mkdir(parents=True, exist_ok=True)
    family, config = importlib.import_module(plan.family), plan.configure(changes)
    try:
        # Several workers share the terminal: each run's lines go to a file of its own.
        with (folder / LOG_FILE).open("w") as log, contextlib.redirect_stderr(log):
            family.train(config, splits, _run(plan, config, trial.number, values))
    finally:
        for name in (CHECKPOINT_FILE, BEST_FILE):
            (folder / name).unlink(missing_ok=True)


def _run(plan: Plan, config: Any, number: int, values: _Values) -> Run:
    return Run(
        plan.run_folder(number),
        record_of(plan.model, plan.data_digest, config),
        epochs=config.epochs,
        seed=plan.seed,
        device=plan.device,
        precision=config.precision,
        on_epoch=values,
    )
