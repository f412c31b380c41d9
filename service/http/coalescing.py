"""Requests in flight that ask for the same thing: computed once, for all of them.

Knows nothing of models, routes or responses.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.errors import DeadlineExceeded, DeadlineUnreachable

T = TypeVar("T")


class Flights(Generic[T]):
    """What is being computed now, by the key that says what it is; nothing is kept afterwards.

    A computation belongs to all who wait for it. It is cancelled when the last of them has left.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def join(
        self, key: Hashable, deadline: float, start: Callable[[], Coroutine[Any, Any, T]]
    ) -> tuple[T, bool]:
        """Return the outcome for a key, and whether another caller had begun to compute it.

        deadline: on the clock of `time.monotonic`, the caller's own. start: computes it by that deadline.
        If another's computation fails for an earlier deadline, it is begun again for this one.
        Raises DeadlineExceeded, and whatever `start` raises.
        """
        while True:
            flight = self._flights.get(key)
            joined = flight is not None
            if flight is None:
                flight = self._begin(key, deadline, start)
            try:
                return await self._wait(key, flight, deadline), joined
            except (DeadlineExceeded, DeadlineUnreachable):
                if flight.deadline >= deadline or time.monotonic() >= deadline:
                    raise

    def _begin(
        self, key: Hashable, deadline: float, start: Callable[[], Coroutine[Any, Any, T]]
    ) -> "_Flight[T]":
        task = asyncio.get_running_loop().create_task(start())
        flight = self._flights[key] = _Flight(task, deadline)
        task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    async def _wait(self, key: Hashable, flight: "_Flight[T]", deadline: float) -> T:
        seconds = None if flight.deadline <= deadline else max(0.0, deadline - time.monotonic())
        flight.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(flight.task)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while another request computed the same") from None
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()

    def _forget(self, key: Hashable, flight: "_Flight[T]") -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    """A computation. deadline: of who began it. waiting: how many wait for it."""

    task: "asyncio.Task[T]"
    deadline: float
    waiting: int = 0
