"""Which cores a measured service and its load generator run on, so that neither waits for the other's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """The cores of each, which are the same where there is only one."""

    service_cores: list[int]
    generator_cores: list[int]


def place() -> Placement:
    """Of the cores that this process may use the last to the generator, which has one thread, the rest to the
    service; onnxruntime's threads then follow from their number, as the service has it.
    """
    cores = sorted(os.sched_getaffinity(0))
    return Placement(cores[:-1] or cores, cores[-1:])


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Keep this thread, and the processes that it starts, to these cores until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
