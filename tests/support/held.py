"""A predictor that waits until a test lets it go."""

import asyncio
from collections.abc import Callable
from functools import partial

from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel


class Held:
    """A predictor's `submit` that waits until it is let go."""

    def __init__(self, predictor: LocalPredictor) -> None:
        self._submit = predictor.submit
        self._waiting: list[Callable[[], object]] = []
        self.cancelled = 0
        predictor.submit = self.submit  # type: ignore[assignment,method-assign]

    def submit(self, *arguments: object, admitted: bool = False) -> Cancel:
        self._waiting.append(partial(self._submit, *arguments, admitted=admitted))  # type: ignore[arg-type]

        def cancel() -> None:
            self.cancelled += 1

        return cancel

    async def holds(self, count: int) -> None:
        while len(self._waiting) < count:
            await asyncio.sleep(0.005)

    def let_go(self) -> None:
        for submit in self._waiting:
            submit()
        self._waiting.clear()
