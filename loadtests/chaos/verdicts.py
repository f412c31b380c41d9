"""What a scenario measured, and whether it meets its bar. Decides only: starts and measures nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = float | int | None


@dataclass(frozen=True)
class Row:
    """One scenario of one server.

    figures: what was measured, by name; the name ends with its unit. None if it could not be measured.
    bars: the largest accepted value of some of the figures.
    note: a condition of the measurement that the table must name.
    about: commit, date and scale, see `loadtests.chaos.__main__`.
    """

    scenario: str
    server: str
    figures: dict[str, Figure]
    bars: dict[str, float] = field(default_factory=dict)
    note: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What a row of another run must share to replace this one."""
        return self.scenario, self.server

    @property
    def misses(self) -> list[str]:
        """The figures above their bars; one that has a bar but no value misses it."""
        return [name for name, limit in self.bars.items() if not _within(self.figures.get(name), limit)]

    @property
    def passed(self) -> bool:
        """Whether every bar is met."""
        return not self.misses


def _within(figure: Figure, limit: float) -> bool:
    return figure is not None and not math.isnan(figure) and figure <= limit


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values does not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through (x, y); NaN of fewer than two different x."""
    if not points:
        return math.nan
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return math.nan
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def ratio(value: float, base: float) -> float:
    """value / base; infinite if there is no base."""
    return value / base if base > 0 else math.inf
