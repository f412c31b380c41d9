"""Work that several requests wait for is done once."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.errors import DeadlineExceeded, DeadlineUnreachable
from service.http.coalescing import Flights

LATE = 1000.0


class Work:
    """Work that ends when it is told to. outcomes: of each start, in their order."""

    def __init__(self, *outcomes: str | Exception) -> None:
        self._outcomes = [*outcomes]
        self.started = self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> str:
        outcome = self._outcomes[self.started]
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def joining(
    flights: Flights[str],
    work: Callable[[], Coroutine[Any, Any, str]],
    seconds: float = LATE,
    key: object = "key",
) -> "asyncio.Task[tuple[str, bool]]":
    return asyncio.ensure_future(flights.join(key, time.monotonic() + seconds, work))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_same_is_computed_once_and_other_things_apart() -> None:
    flights, work = Flights[str](), Work("first", "other", "again")
    tasks = [joining(flights, work), joining(flights, work), joining(flights, work, key="another")]
    await settle()
    assert work.started == 2
    work.go.set()
    assert await asyncio.gather(*tasks) == [("first", False), ("first", True), ("other", False)]
    assert await joining(flights, work) == ("again", False)  # nothing is kept


async def test_one_that_leaves_takes_nothing_from_the_others() -> None:
    flights, work = Flights[str](), Work("done")
    first, second = joining(flights, work), joining(flights, work)
    await settle()
    first.cancel()
    await settle()
    assert (first.cancelled(), work.cancelled) == (True, 0)
    work.go.set()
    assert await second == ("done", True)


async def test_work_ends_when_the_last_has_left_and_the_next_begins_anew() -> None:
    flights, work = Flights[str](), Work("never", "done")
    tasks = [joining(flights, work), joining(flights, work)]
    await settle()
    for task in tasks:
        task.cancel()
    late = joining(flights, work)
    await settle()
    assert (work.started, work.cancelled) == (2, 1)
    work.go.set()
    assert await late == ("done", False)


async def test_each_has_a_deadline_of_its_own() -> None:
    flights, work = Flights[str](), Work("done")
    patient, hasty = joining(flights, work), joining(flights, work, seconds=0.01)
    with pytest.raises(DeadlineExceeded, match="while another request computed the same"):
        await hasty
    assert work.cancelled == 0
    work.go.set()
    assert await patient == ("done", False)


@pytest.mark.parametrize("error", [DeadlineExceeded("too late"), DeadlineUnreachable("too late")])
async def test_an_earlier_deadline_fails_only_who_has_it(error: Exception) -> None:
    flights, work = Flights[str](), Work(error, "done")
    hasty, patient = joining(flights, work, seconds=10), joining(flights, work)
    await settle()
    work.go.set()
    with pytest.raises(type(error), match="too late"):
        await hasty
    assert await patient == ("done", False)
    assert work.started == 2


async def test_any_other_error_is_everyones() -> None:
    flights, work = Flights[str](), Work(ValueError("bad"))
    tasks = [joining(flights, work), joining(flights, work)]
    await settle()
    work.go.set()
    assert [str(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == ["bad", "bad"]
