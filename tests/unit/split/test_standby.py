"""A process that waits to take another's place, with real processes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.split.process import Process, start
from service.split.standby import Standby

OBEYS = "import os, sys; sys.exit(7 if os.read(int(sys.argv[1]), 1) else 0)"


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def spawning(code: str, started: list[Process]) -> Callable[[int], Process]:
    def spawn(order: int) -> Process:
        started.append(start([sys.executable, "-c", code, str(order)], [order], os.environ))
        return started[-1]

    return spawn


async def test_it_works_when_it_is_told_to() -> None:
    started: list[Process] = []
    standby = Standby("child", spawning(OBEYS, started))
    assert standby.take() is None
    standby.prepare()
    standby.prepare()
    assert standby.take() is started[0]
    assert await started[0].wait() == 7
    assert len(started) == 1


async def test_another_is_prepared_once_one_was_taken() -> None:
    started: list[Process] = []
    standby = Standby("child", spawning(OBEYS, started))
    for number in range(3):
        standby.prepare()
        assert standby.take() is started[number]
        await started[number].wait()
    await standby.close()
    assert len(started) == 3


async def test_one_that_has_exited_is_not_taken_and_not_replaced_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started: list[Process] = []
    standby = Standby("child", spawning("raise SystemExit(3)", started))
    standby.prepare()
    assert await started[0].wait() == 3
    standby.prepare()
    assert len(started) == 1
    assert standby.take() is None
    assert "the spare of child has exited" in caplog.text
    standby.prepare()
    assert len(started) == 2
    await standby.close()


async def test_closing_ends_it_and_leaks_no_descriptor() -> None:
    started: list[Process] = []
    before = open_descriptors()
    for code in (OBEYS, "raise SystemExit(3)"):
        standby = Standby("child", spawning(code, started))
        standby.prepare()
        await standby.close()
        assert started[-1].returncode is not None
    assert open_descriptors() == before


async def test_one_that_cannot_be_started_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def spawn(_: int) -> Process:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = open_descriptors()
    standby = Standby("child", spawn)
    standby.prepare()
    assert standby.take() is None
    await standby.close()
    assert "the spare of child cannot be started: [Errno 11]" in caplog.text
    assert open_descriptors() == before
