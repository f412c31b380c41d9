"""The study in its SQLite file: opened, checked, asked for the next trial, told how one ended.

Any number of processes may use it. A lock makes counting and asking one step, so that the workers never
start more trials than were ordered.
"""

import contextlib
import fcntl
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DatabaseError

from training.errors import TuningError
from training.tuning.plan import Plan
from training.tuning.space import Choice, Range

STUDY_FILE = "study.db"
LOCK_FILE = "study.lock"
COMMAND_LOCK_FILE = "command.lock"
RECORD = "record"

# Trials before the sampler (TPE) stops drawing at random, and complete ones before any is pruned: fewer
# than Optuna's 10 and 5, because a study here has 10 to 30 trials.
RANDOM_TRIALS = 6
UNPRUNED_TRIALS = 4

# How long a worker waits for another's write to the SQLite file.
LOCK_SECONDS = 60

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@contextlib.contextmanager
def open_study(plan: Plan) -> Iterator[Study]:
    """Open the study in the plan's folder, or start it; errors of its file become one OSError.

    Raises TuningError if the folder holds a study of something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = plan.folder / STUDY_FILE
    with _storage_errors(path):
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}}
        )
        try:
            study = optuna.create_study(
                study_name=plan.model,
                storage=storage,
                direction="maximize" if plan.space.maximize else "minimize",
                pruner=pruner(plan.config.epochs),
                load_if_exists=True,
            )
            _check_unchanged(plan, study)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def pruner(epochs: int) -> MedianPruner:
    """Stop a trial whose best value so far is worse than the median of the others at the same epoch.

    Not Hyperband: of 3 or 4 epochs it makes two brackets, and half of the trials would not be pruned
    before epoch 3. In the first quarter of its epochs no trial is pruned, because a long warm-up looks
    worse there than it ends.
    """
    # The epochs are counted from 1, as in metrics.jsonl.
    return MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=math.ceil(epochs / 4) + 1)


def ask(plan: Plan, study: Study) -> Trial | None:
    """Start the next trial, or return None if enough are finished or running; its number keys the sampler.

    The sampler is seeded by (seed, number of the trial) and not once, because a continued study would
    draw the values of its first trials again.
    """
    with _alone(plan.folder / LOCK_FILE, wait=True):
        trials = study.get_trials(deepcopy=False)
        counted = [trial for trial in trials if trial.state in (*FINISHED, TrialState.RUNNING)]
        if len(counted) >= plan.trials:
            return None
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        if not waiting and not any(is_default(plan, trial) for trial in counted):
            study.enqueue_trial(plan.defaults)
        key = int(np.random.SeedSequence((plan.seed, len(trials))).generate_state(1)[0])
        study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=key)
        return study.ask(distributions(plan))


def is_default(plan: Plan, trial: FrozenTrial | Trial) -> bool:
    """Whether a trial has the values of the default configuration."""
    same_fields = trial.params.keys() == plan.defaults.keys()
    return same_fields and plan.changes(trial.params) == plan.changes(plan.defaults)


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """The plan's space in Optuna's terms."""
    return {name: _distribution(field) for name, field in plan.space.fields.items()}


def _distribution(field: Range | Choice) -> BaseDistribution:
    if isinstance(field, Range):
        return FloatDistribution(field.low, field.high, log=field.log)
    return CategoricalDistribution(field.values)


def lose_trials(study: Study, worker: int | None = None) -> None:
    """Mark the running trials as failed: those of one worker's process, or all."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if worker is None or trial.user_attrs.get("worker") == worker:
            study.tell(trial.number, state=TrialState.FAIL)


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that were trained to the end or pruned, by number."""
    return study.get_trials(deepcopy=False, states=FINISHED)


@contextlib.contextmanager
def only_command(plan: Plan) -> Iterator[None]:
    """Hold the study's folder for one command. Raises TuningError if another has it."""
    try:
        with _alone(plan.folder / COMMAND_LOCK_FILE, wait=False):
            yield
    except BlockingIOError:
        raise TuningError(f"another command works on {plan.folder}: give another --study-dir") from None


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn the errors of the SQLite file (a full disk, no database) into OSError, in one line."""
    try:
        yield
    except (DatabaseError, StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise OSError(f"{path}: {str(cause).splitlines()[0]}") from error


@contextlib.contextmanager
def _alone(path: Path, wait: bool) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _check_unchanged(plan: Plan, study: Study) -> None:
    seen, record = study.user_attrs.get(RECORD), plan.record()
    if seen is None:
        study.set_user_attr(RECORD, record)
        return
    changed = [
        f"{name} is {record.get(name)!r}, was {seen.get(name)!r}"
        for name in sorted({*record, *seen})
        if record.get(name) != seen.get(name)
    ]
    if changed:
        raise TuningError(
            f"{plan.folder} holds another study: {'; '.join(changed)}: give another --study-dir"
        )
