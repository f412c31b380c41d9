"""The loggers of Fabric that a run's metrics also go to, for tools that read their formats."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from training.errors import RunError

LoggerName = Literal["csv", "tensorboard"]
LOGS_FOLDER = "logs"


class Loggers:
    """The named loggers, each in its own folder below the run's `logs`; one process of a run has them.

    history: the metrics of the finished epochs, which are logged again, because a run may have been killed
        between its checkpoint and its logs. Raises RunError if a package is missing.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, history: Sequence[Mapping[str, float]]) -> None:
        self._loggers = [_open(name, run_dir / LOGS_FOLDER) for name in names]
        for metrics in history:
            self.log(metrics)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log an epoch's metrics, under its number."""
        for logger in self._loggers:
            logger.log_metrics(dict(metrics), step=int(metrics["epoch"]))
            logger.save()


def _open(name: str, folder: Path) -> Logger:
    if name not in get_args(LoggerName):
        raise RunError(f"logger is {name!r}, expected one of {', '.join(get_args(LoggerName))}")
    shutil.rmtree(folder / name, ignore_errors=True)
    if name == "csv":
        return CSVLogger(folder, name=None, version=name)
    try:
        return TensorBoardLogger(folder, name=None, version=name)
    except ModuleNotFoundError as error:
        raise RunError(
            f"the logger tensorboard needs a package that is missing ({error.name}): "
            "install the extra `tensorboard`"
        ) from None
