"""The seam between HTTP and inference: what a route may ask, and the answer within one process.

A route sees models only as manifests; it knows nothing of engines, queues or devices.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, ModelNotFound, PayloadTooLarge
from service.models.manifest import Manifest, Task
from service.models.tensors import check_tensor

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class ModelInfo:
    """A model version that is being served. card: its README.md, Markdown, or empty."""

    manifest: Manifest
    card: str


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


class Catalogue:
    """The model versions that are being served at one moment; never changes."""

    def __init__(self, models: Iterable[ModelInfo]) -> None:
        self._versions: dict[str, dict[int, ModelInfo]] = {}
        for info in sorted(models, key=lambda info: (info.manifest.name, info.manifest.version)):
            self._versions.setdefault(info.manifest.name, {})[info.manifest.version] = info
        self._latest = {name: versions[max(versions)] for name, versions in self._versions.items()}

    def __iter__(self) -> Iterator[ModelInfo]:
        return (info for versions in self._versions.values() for info in versions.values())

    def find(self, name: str, version: int | None = None) -> ModelInfo:
        """That version of a model, or its latest. Raises ModelNotFound."""
        info = self._latest.get(name) if version is None else self._versions.get(name, {}).get(version)
        if info is not None:
            return info
        if name not in self._versions:
            raise ModelNotFound(f"there is no model {name!r}, expected one of {', '.join(self._versions)}")
        versions = ", ".join(str(known) for known in self._versions[name])
        raise ModelNotFound(f"model {name!r} has no version {version}, expected one of {versions}")

    def versions(self, name: str) -> list[int]:
        """The versions of a model, ascending. Raises ModelNotFound."""
        self.find(name)
        return list(self._versions[name])

    def first(self, task: Task) -> ModelInfo:
        """The latest version of the first model, by name, for a task. Raises ModelNotFound."""
        for info in self._latest.values():
            if info.manifest.task == task:
                return info
        raise ModelNotFound(f"no model for {task} is loaded")


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


def check_inputs(manifest: Manifest, inputs: Mapping[str, Array], max_rows: int) -> int:
    """The number of rows of a request that the model can run.

    Raises InvalidInput where a tensor is missing, unknown, of another dtype or shape, has another
    number of rows than the rest, or holds labels that the model does not know; PayloadTooLarge
    above `max_rows`.
    """
    if len(inputs) == len(manifest.inputs) == 1 and manifest.inputs[0].name in inputs:
        rows = check_tensor(manifest.inputs[0], inputs[manifest.inputs[0].name])
        if rows <= max_rows and "label" not in inputs:
            return rows  # what nearly all requests are, in a third of the time
    counts = {
        spec.name: check_tensor(spec, inputs[spec.name]) for spec in manifest.inputs if spec.name in inputs
    }
    if not len(counts) == len(inputs) == len(manifest.inputs):
        expected = [spec.name for spec in manifest.inputs]
        raise InvalidInput(f"inputs are {sorted(inputs)}, model {manifest.name} expects {expected}")
    rows = max(counts.values())
    if rows != min(counts.values()):
        raise InvalidInput(f"inputs have different numbers of rows: {counts}, expected the same")
    if rows > max_rows:
        raise PayloadTooLarge(f"request has {rows} rows, expected at most {max_rows}")
    if "label" in inputs:
        _check_labels(manifest, inputs["label"])
    return rows


def _check_labels(manifest: Manifest, labels: Array) -> None:
    """Before queueing: a graph that looks up a label it does not have fails its whole batch."""
    wrong = (labels < 0) | (labels >= len(manifest.labels))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidInput(f"label[{row}] is {labels[row]}, expected 0..{len(manifest.labels) - 1}")
