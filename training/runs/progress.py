"""How a run reports its progress in a terminal or a log. Knows nothing of checkpoints or models."""

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import SupportsFloat

# The end of the names of metrics that there is one of for each class: validation_recall_0, ...
NUMBERED = re.compile(r"_\d+$")


def summary(metrics: Mapping[str, float]) -> str:
    """An epoch's metrics on one line; of numbered ones only the lowest, such as the worst class's recall.

    >>> summary({"epoch": 1, "recall_0": 0.75, "recall_1": 0.5, "seconds": 2.0})
    'epoch 1  recall_1 0.5 (lowest of 2)  seconds 2'
    """
    families: dict[str, list[str]] = {}
    for name in metrics:
        families.setdefault(NUMBERED.sub("", name), []).append(name)
    return "  ".join(_lowest(names, metrics) for names in families.values())


def _lowest(names: list[str], metrics: Mapping[str, float]) -> str:
    name = min(names, key=lambda each: metrics[each])
    shown = f"{name} {metrics[name]:.5g}"
    return shown if len(names) == 1 else f"{shown} (lowest of {len(names)})"


class Progress:
    """Says from time to time how far a run is, for a log that shows no progress bar.

    The time comes in as `now`, in seconds of any clock that only moves forward.
    """

    def __init__(self, epochs: int, interval_seconds: float, now: float) -> None:
        self._epochs = epochs
        self._interval = interval_seconds
        self._started = self._last = now
        self._steps = self._steps_at_last = 0

    def step(
        self, epoch: int, step: int, steps: int, losses: Iterable[SupportsFloat], now: float
    ) -> str | None:
        """Count a finished step; returns the line to print, or None if the last one is not old enough.

        epoch, step: counted from 0. steps: of each epoch. losses: as many as the model has; read only if a
        line is due, because a device must be waited for. The time left is that of the average step so far,
        validation included.
        """
        self._steps += 1
        if now - self._last < self._interval:
            return None
        pace = (self._steps - self._steps_at_last) / max(now - self._last, 1e-9)
        left = steps * (self._epochs - epoch) - step - 1
        seconds_left = round(left * (now - self._started) / self._steps)
        self._last, self._steps_at_last = now, self._steps
        place = f"epoch {epoch + 1}/{self._epochs}  step {step + 1}/{steps}"
        loss = " ".join(f"{float(each):.4g}" for each in losses) or "-"
        return f"{place}  loss {loss}  {pace:.3g} steps/s  {timedelta(seconds=seconds_left)} left"
