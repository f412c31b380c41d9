"""Steps that `/classify` and `/generate` share: finding the model, deadlines, raw responses."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from service.batching.request import InferenceResult, Priority
from service.errors import InvalidInput
from service.http.headers import MODEL, PRIORITY, SHAPE, VERSION
from service.http.headers import TIMEOUT as TIMEOUT_HEADER
from service.http.requests import parse_int
from service.http.responses import Response
from service.http.types import OCTETS, Headers
from service.models.catalogue import Catalogue
from service.models.manifest import MAX_VERSION, Manifest, Task
from service.models.tensors import Array
from service.serving.predictor import Predictor

T = TypeVar("T")

TIMEOUT = TIMEOUT_HEADER.wire


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a request is for. version: as the caller pinned it, None for the latest."""

    manifest: Manifest
    version: int | None


def find_target(
    predictor: Predictor,
    task: Task,
    name: str | None,
    version: int | None,
    default: str | None,
    kinds: tuple[str, ...] = (),
) -> Target:
    """Return the named model, or the default one for the task. Raises ModelNotFound, InvalidInput.

    kinds: variants that may answer for it, the best first, unless the caller pins its version.
    """
    models = predictor.models()
    name = name or default or models.default(task).manifest.name
    manifest = find_manifest(models, name, version, kinds)
    if manifest.task != task:
        raise InvalidInput(f"model {name} is for {manifest.task}, expected one for {task}")
    return Target(manifest, version)


def find_manifest(models: Catalogue, name: str, version: int | None, kinds: tuple[str, ...]) -> Manifest:
    """Return the manifest of a model's version, or of its latest or that one's variant; see `find_target`."""
    return models.preferred(name, kinds) if kinds and version is None else models.find(name, version).manifest


def answered_by(predictor: Predictor, asked: Manifest, result: InferenceResult) -> Manifest:
    """Return the manifest of the version that answered: a newer one than asked if a reload came between."""
    if result.version == asked.version:
        return asked
    return predictor.models().find(asked.name, result.version).manifest


def parse_version(query: Mapping[str, str]) -> int | None:
    """Return the version that the query pins, or None. Raises InvalidInput."""
    return parse_int("version", query["version"], 1, MAX_VERSION) if "version" in query else None


def read_timeout(headers: Headers, longest: float) -> float:
    """Return how many seconds the response may take: what the request's header says, or else `longest`.

    Raises InvalidInput unless it is a number above 0 and at most `longest`.
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


def read_priority(headers: Headers) -> Priority:
    """Return the priority that the request's header names; normal without one. Raises InvalidInput."""
    text = headers.get(PRIORITY.wire, b"normal")
    if text == b"normal":
        return "normal"
    if text == b"low":
        return "low"
    raise InvalidInput(f"{PRIORITY.wire.decode()} is {text[:40].decode('latin-1')!r}, expected normal or low")


def raw_response(
    target: Target, result: InferenceResult, array: Array, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Response:
    """Return the rows as they lie in memory, little-endian; the shape is in a header."""
    name = target.manifest.name
    every = raw_headers(name, result.version, array.shape) + headers
    return Response(array.tobytes(), OCTETS, headers=every, timing=server_timing(result), model=name)


@lru_cache
def raw_headers(name: str, version: int, shape: tuple[int, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of a raw response: its model, and the shape of its rows."""
    sizes = b",".join(b"%d" % size for size in shape)
    return (*model_headers(name, version), (SHAPE.wire, sizes))


@lru_cache
def model_headers(name: str, version: int) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that say which model answered, for responses that are not JSON."""
    return (MODEL.wire, name.encode("ascii")), (VERSION.wire, b"%d" % version)


SERVER_TIMING = b'queue;dur=%.3f, compute;dur=%.3f, batch;desc="%d"'
"""Where the time went, in milliseconds, and the rows of the batch (W3C Server Timing)."""


def server_timing(result: InferenceResult) -> bytes:
    """Return the value of the Server-Timing header."""
    return SERVER_TIMING % (result.queue_seconds * 1e3, result.compute_seconds * 1e3, result.batch_rows)


async def off_loop(large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function here, or on a thread if it would block the event loop for long."""
    return await asyncio.to_thread(function, *arguments) if large else function(*arguments)
