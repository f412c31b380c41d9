"""What `/classify` and `/generate` share: finding the model, raw answers."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import orjson

from service.errors import InvalidInput
from service.http.headers import MODEL, SHAPE, VERSION
from service.http.headers import TIMEOUT as TIMEOUT_HEADER
from service.http.requests import parse_int
from service.http.responses import Answer
from service.http.types import OCTETS, Headers
from service.models.manifest import Manifest, Task
from service.models.tensors import Array
from service.serving.predictor import Inference, Predictor

T = TypeVar("T")

TIMEOUT = TIMEOUT_HEADER.wire
MAX_VERSION = 2**31
INLINE_BYTES = 16 * 1024
"""Bodies up to this are decoded on the event loop: handing them to a thread would take longer."""


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a request is for. version: as the caller pinned it, None for the latest."""

    manifest: Manifest
    version: int | None


def find_target(
    predictor: Predictor, task: Task, name: str | None, version: int | None, default: str | None
) -> Target:
    """The model that is named, or the default one for the task. Raises ModelNotFound, InvalidInput."""
    models = predictor.models()
    name = name or default or models.first(task).manifest.name
    manifest = models.find(name, version).manifest
    if manifest.task != task:
        raise InvalidInput(f"model {name} is for {manifest.task}, expected one for {task}")
    return Target(manifest, version)


def answered_by(predictor: Predictor, asked: Manifest, inference: Inference) -> Manifest:
    """The manifest of the version that answered: a newer one than was asked if a reload came between."""
    if inference.version == asked.version:
        return asked
    return predictor.models().find(asked.name, inference.version).manifest


def parse_version(query: Mapping[str, str]) -> int | None:
    """The version that the query pins, if it does. Raises InvalidInput."""
    return parse_int("version", query["version"], 1, MAX_VERSION) if "version" in query else None


def read_timeout(headers: Headers, longest: float) -> float:
    """How many seconds the answer may take, by the request's own header or, without one, `longest`.

    Raises InvalidInput for what is no number in 0..longest, 0 excluded.
    """
    text = headers.get(TIMEOUT)
    if text is None:
        return longest
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= longest:
        raise InvalidInput(
            f"{TIMEOUT.decode()} is {text[:40].decode('latin-1')!r}, expected seconds, above 0 and at most "
            f"{longest:g}"
        )
    return seconds


def raw_answer(
    target: Target, inference: Inference, array: Array, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Answer:
    """The rows as they lie in memory, little-endian; the shape is in a header."""
    name = target.manifest.name
    every = _raw_headers(name, inference.version, array.shape) + headers
    return Answer(array.tobytes(), OCTETS, headers=every, timing=server_timing(inference), model=name)


@lru_cache
def _raw_headers(name: str, version: int, shape: tuple[int, ...]) -> tuple[tuple[bytes, bytes], ...]:
    sizes = b",".join(b"%d" % size for size in shape)
    return (*model_headers(name, version), (SHAPE.wire, sizes))


@lru_cache
def model_headers(name: str, version: int) -> tuple[tuple[bytes, bytes], ...]:
    """Which model answered, for answers that are not JSON."""
    return (MODEL.wire, name.encode("ascii")), (VERSION.wire, b"%d" % version)


def server_timing(inference: Inference) -> bytes:
    """Where the time went, in milliseconds, and the rows of the batch (W3C Server Timing)."""
    return b'queue;dur=%.3f, compute;dur=%.3f, batch;desc="%d"' % (
        inference.queue_seconds * 1e3,
        inference.compute_seconds * 1e3,
        inference.batch_rows,
    )


def load_json(body: bytes) -> Any:
    """A JSON body. Raises InvalidInput."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"body is not JSON: {error}") from None


async def off_loop(large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function here, or on a thread if it would hold the event loop up."""
    return await asyncio.to_thread(function, *arguments) if large else function(*arguments)
