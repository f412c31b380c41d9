"""The seam between the protocols and inference: what a route may ask of the models.

A route sees models only as manifests; it knows nothing of engines, queues or devices.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from service.batching.request import Done, InferenceRequest, InferenceResult, Priority
from service.models.catalogue import Catalogue

T = TypeVar("T")

Cancel = Callable[[], None]


class Predictor(Protocol):
    """What serves the models, in this process or in another."""

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Run a request's rows.

        done: called once, in a later iteration of the event loop, with the result, one of Unavailable's
            kinds or EngineError.
        admitted: `check_admission` accepted the request in this iteration of the event loop.
        Returns a function that cancels the request; `done` is then never called.
        Raises InvalidInput, PayloadTooLarge, ModelNotFound, Unavailable's kinds.
        """
        ...

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> str | None:
        """Return the reason `submit` would raise QueueFull for this many rows, or None, which promises
        nothing.

        A quick look before anything is read or decoded; it changes nothing. seconds: until the deadline.
        Raises ModelNotFound.
        """
        ...

    def note_rejection(self, model: str, version: int | None) -> None:
        """A request was rejected on what `check_admission` said, and was not submitted."""
        ...

    def models(self) -> Catalogue:
        """The models that are served now; the same object until they change."""
        ...

    def ready(self) -> bool:
        """Whether every model is loaded and warm, and new work is accepted."""
        ...

    async def reload(self) -> list[str]:
        """Bring the served models in line with the folder; returns what could not be loaded, and why."""
        ...


def resolve(future: "asyncio.Future[T]", outcome: T | Exception) -> None:
    """Hand a future its outcome, unless it was cancelled and its task has not run since."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def infer(predictor: Predictor, request: InferenceRequest) -> InferenceResult:
    """Run a request's rows and wait for them; see `Predictor.submit`. Raises the error that is its
    outcome."""
    future: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
    cancel = predictor.submit(request, partial(resolve, future))
    try:
        return await future
    except asyncio.CancelledError:
        cancel()
        raise
