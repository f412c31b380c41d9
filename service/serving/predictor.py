"""The seam between the protocols and inference: the calls that a route may make.

A route sees models only as manifests; it knows nothing of engines, queues or devices.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from service.batching.mirror import QueueState
from service.batching.request import (
    Done,
    GroupDone,
    InferenceRequest,
    InferenceResult,
    Priority,
    RequestGroup,
)
from service.batching.retries import Refusal
from service.models.catalogue import Catalogue

T = TypeVar("T")

Cancel = Callable[[], None]

CancelOne = Callable[[int], None]
"""Cancels one request of a group, by its place in it."""


class Predictor(Protocol):
    """Serves the models, in this process or in another."""

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Run a request's rows.

        done: called once, in a later iteration of the event loop, with the result, a subclass of Unavailable,
            or EngineError.
        admitted: `check_admission` accepted the request in this iteration of the event loop.
        Returns a function that cancels the request; `done` is then never called.
        Raises InvalidInput, PayloadTooLarge, ModelNotFound, subclasses of Unavailable; DeadlineExceeded if
        the deadline has passed.
        """
        ...

    def memory(self, size: int) -> memoryview | None:
        """Return memory for the rows of a request that will be submitted, or None if any other is as good.

        Nobody else writes to it. It is given back when nothing refers to it any more.
        """
        ...

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> Refusal | None:
        """Return the reason why `submit` would raise QueueFull for this many rows, or None.

        A quick check before anything is read or decoded; it changes nothing, and None promises nothing.
        seconds: until the deadline. Raises ModelNotFound.
        """
        ...

    def note_rejection(self, model: str, version: int | None, refusal: Refusal, rows: int) -> float:
        """Note that a request was rejected by `check_admission`, and not submitted.

        Returns the seconds after which it should return.
        """
        ...

    def models(self) -> Catalogue:
        """Return the models that are served now; the same object until they change."""
        ...

    def ready(self) -> bool:
        """Whether every model is loaded and warm, and new work is accepted."""
        ...

    async def reload(self) -> list[str]:
        """Make the served models match the folder; returns a line for each version that cannot be loaded."""
        ...


class GroupPredictor(Predictor, Protocol):
    """A predictor that takes requests in groups, as they come from other processes."""

    def submit_group(self, group: RequestGroup, deliver: GroupDone) -> CancelOne:
        """Run the rows of requests that came together.

        deliver: called with what `submit` would raise or deliver for each of them, in a later iteration of
            the event loop. One that fails does not touch the others.
        """
        ...

    def queue_state(self, model: str, version: int | None) -> QueueState | None:
        """Return the state of a model version's queue; None if it is empty. Raises ModelNotFound."""
        ...


def resolve(future: "asyncio.Future[T]", outcome: T | Exception) -> None:
    """Set a future's result or exception, unless it was cancelled meanwhile."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def infer(predictor: Predictor, request: InferenceRequest) -> InferenceResult:
    """Run a request's rows and wait for the result; see `Predictor.submit`. Raises its error, if any."""
    future: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
    cancel = predictor.submit(request, partial(resolve, future))
    try:
        return await future
    except asyncio.CancelledError:
        cancel()
        raise
