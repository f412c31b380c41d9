"""The seam between HTTP and inference: what a route may ask, and the answer within one process.

A route sees models only as manifests; it knows nothing of engines, queues or devices.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from service.models.catalogue import Catalogue
from service.models.tensors import Array

T = TypeVar("T")


class Inference(NamedTuple):
    """What a model version made of a request's rows, and the seconds that it took.

    outputs: by tensor name, each (rows, ...).
    """

    version: int
    outputs: dict[str, Array]
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


Done = Callable[[Inference | Exception], None]
Cancel = Callable[[], None]


class Predictor(Protocol):
    """What serves the models, in this process or in another."""

    def begin(
        self, model: str, version: int | None, inputs: Mapping[str, Array], deadline: float, done: Done
    ) -> Cancel:
        """Begin to run a request's rows.

        version: None takes the latest at this moment.
        inputs: every input of the model by name, each (rows, ...), as its manifest says.
        deadline: on the clock of `time.monotonic`.
        done: called once, on the event loop after this turn of it, with the inference or with one of
            Unavailable's kinds or EngineError.
        Returns what to call where nobody waits for the answer any more; `done` is not called then.
        Raises InvalidInput, PayloadTooLarge, ModelNotFound, Unavailable's kinds.
        """
        ...

    def refusal(self, model: str, version: int | None, rows: int, seconds: float) -> str | None:
        """Why `begin` would raise QueueFull for so many rows with a deadline in `seconds`, if it is known.

        A quick look before anything is decoded; None promises nothing. Raises ModelNotFound.
        """
        ...

    def models(self) -> Catalogue:
        """The models that are being served now."""
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


async def infer(
    predictor: Predictor, model: str, version: int | None, inputs: Mapping[str, Array], deadline: float
) -> Inference:
    """Run a request's rows and wait for them; see `Predictor.begin`. Raises what `done` would be told."""
    future: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
    cancel = predictor.begin(model, version, inputs, deadline, partial(resolve, future))
    try:
        return await future
    except asyncio.CancelledError:
        cancel()
        raise
