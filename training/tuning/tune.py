"""The command `tune`: starts the workers, watches them, and reports the study."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from optuna.study import Study

from training.errors import TuningError
from training.terminal import notice
from training.tuning.plan import TRIALS_FOLDER, Plan
from training.tuning.report import report, trial_line
from training.tuning.study import finished, lose_trials, only_command, open_study
from training.tuning.worker import work


def tune(plan: Plan, workers: int) -> None:
    """Search until the study has the plan's number of finished trials, then print and write its report.

    Raises TuningError or OSError for what stops a worker; the finished trials are kept.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    with only_command(plan), open_study(plan) as study:
        lose_trials(study)  # those of an earlier command that was killed
        _remove_weights(plan.folder)
        done = len(finished(study))
        if done:
            notice(f"{plan.folder}: {done} of {plan.trials} trials are done")
        try:
            _work(plan, study, min(workers, plan.trials - done))
        finally:
            _remove_weights(plan.folder)
        lost = plan.trials - len(finished(study))
        if finished(study):
            report(plan, study)
        if lost > 0:
            raise TuningError(
                f"{plan.trials - lost} of {plan.trials} trials are done, because workers ended early: "
                f"run the command again for the others"
            )


class _Worker:
    """A worker's process, and the end of a pipe that tells why it stopped early."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.problems: Connection
        self.problems, other = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(target=work, args=(plan, other), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        other.close()

    def check(self) -> None:
        """Raise the error that stopped the worker, if one did."""
        try:
            status, message = self.problems.recv()
        except EOFError:
            return
        raise TuningError(message) if status == 2 else OSError(message)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C, which a process started meanwhile goes on to do.

    A terminal sends it to every process. Only the parent obeys, and kills the workers: one that is still
    importing would print a traceback.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(plan: Plan, study: Study, count: int) -> None:
    workers = [_Worker(plan) for _ in range(count)]
    running = list(workers)
    told = {trial.number for trial in finished(study)}
    try:
        while running:
            ended = wait([each.process.sentinel for each in running], timeout=1)
            for each in [each for each in running if each.process.sentinel in ended]:
                running.remove(each)
                _end(study, each)
            for trial in finished(study):
                if trial.number not in told:
                    told.add(trial.number)
                    notice(trial_line(plan, trial))
    finally:
        for each in workers:
            each.process.kill()
            each.process.join()
    lose_trials(study)


def _end(study: Study, worker: _Worker) -> None:
    worker.process.join()
    code = worker.process.exitcode or 0
    if code < 0:
        notice(f"worker {worker.process.pid} was killed by {signal.Signals(-code).name}; its trial is lost")
    elif code > 0:
        notice(f"worker {worker.process.pid} ended with status {code}; its trial is lost")
    worker.check()
    if worker.process.pid is not None:
        lose_trials(study, worker.process.pid)


def _remove_weights(folder: Path) -> None:
    """Remove the checkpoints that killed workers left; of a trial only its metrics are kept."""
    for path in (folder / TRIALS_FOLDER).glob("*/*"):
        if path.suffix in (".pt", ".tmp"):
            path.unlink(missing_ok=True)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
