"""The cores of a measured service and of its load generator, so that neither waits for the other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """The cores of each; both share the core of a single-core machine."""

    service_cores: list[int]
    generator_cores: list[int]


def place() -> Placement:
    """Give the last available core to the generator, which has one thread, and the others to the service.

    The service derives the number of onnxruntime's threads from its cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    return Placement(cores[:-1] or cores, cores[-1:])


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Run this thread, and the processes that it starts, on these cores until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
