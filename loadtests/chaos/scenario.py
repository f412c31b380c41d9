"""What every scenario gets, and how it counts: the seam between the command and the kinds of trouble."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loadtests.chaos.subjects import Subject
from loadtests.chaos.verdicts import Row


@dataclass(frozen=True)
class Context:
    """Whom to trouble, and how much. scale: of the published counts and times, 1 for all of them."""

    subject: Subject
    scale: float
    seed: int = 0

    def count(self, full: int, least: int = 1) -> int:
        """A number of events, scaled."""
        return max(least, round(full * self.scale))

    def seconds(self, full: float, least: float) -> float:
        """A duration, scaled."""
        return max(least, full * self.scale)

    def random(self, name: str) -> random.Random:
        """Random numbers of a scenario's own, the same in each run."""
        return random.Random(f"{self.seed} {name}")


Scenario = Callable[[Context], Iterator[Row]]
"""Runs one kind of trouble and yields its rows, each as soon as it is complete."""
