"""Requests that always get the same response: computed once while in flight, and never for who has it."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from service.batching.request import InferenceResult
from service.http.coalescing import Flights
from service.http.disconnects import DisconnectWatch
from service.http.responses import Response
from service.http.routes.prompts import Asker
from service.http.types import Headers, Scope
from service.http.validators import (
    NEVER_CACHED,
    HeaderPair,
    cache_headers,
    etag_of,
    has_current,
    maker_of,
)
from service.models.manifest import Manifest
from service.settings import Settings


class Answered(NamedTuple):
    """A response, the result that it shows, and the model version that made it."""

    response: Response
    result: InferenceResult
    manifest: Manifest


Work = Callable[[Asker], Coroutine[Any, Any, Answered]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a response, without the generator's version.

    parts: hashable. generator: its version is in the ETag, too. is_exact: whether the bytes are decided; a
    classifier's probabilities, for one, may depend on their batch. is_pinned: whether the request names the
    versions of all models. exists: whether the response will surely be a 200, if the service can compute.
    """

    parts: tuple[object, ...]
    generator: Manifest
    is_exact: bool
    is_pinned: bool
    exists: bool

    def all_parts(self) -> tuple[object, ...]:
        """Return the parts with the generator's version."""
        return (*version_parts(self.generator), *self.parts)


def version_parts(manifest: Manifest) -> tuple[object, ...]:
    """Return what tells a model version from all others."""
    return manifest.name, manifest.version, manifest.sha256


class Repeats:
    """Answers requests whose responses repeat."""

    def __init__(self, settings: Settings, watch: DisconnectWatch) -> None:
        self._watch = watch
        self._flights: Flights[Answered] = Flights()
        self._maker = maker_of(settings)
        self._is_private = settings.api_keys_file is not None

    async def answer(
        self, scope: Scope, headers: Headers, asker: Asker, identity: Identity | None, work: Work
    ) -> Response:
        """Answer a request. identity: None if its response depends on chance. work: computes the response."""
        is_get = scope["method"] in ("GET", "HEAD")
        if identity is None:
            response = (await work(asker)).response
            return _with(response, NEVER_CACHED) if is_get else response
        etag = self._etag(identity)
        if is_get and has_current(headers, etag, exists=identity.exists):
            return Response(
                b"", status=304, headers=self._cache_headers(identity), model=identity.generator.name
            )
        asker.call.submitted()
        alone = replace(asker, is_shared=True)
        key = (identity.all_parts(), asker.priority)
        waiting = self._flights.join(key, asker.deadline, partial(work, alone))
        answered, joined = await self._watch.guard(asker.receive, waiting)
        asker.call.note_inference(answered.result)
        if joined:
            asker.call.count_coalesced()
        if not is_get:
            return answered.response
        return _with(answered.response, self._cache_headers(replace(identity, generator=answered.manifest)))

    def _etag(self, identity: Identity) -> bytes:
        return etag_of(identity.all_parts(), self._maker, is_exact=identity.is_exact)

    def _cache_headers(self, identity: Identity) -> tuple[HeaderPair, ...]:
        return cache_headers(self._etag(identity), is_pinned=identity.is_pinned, is_private=self._is_private)


def _with(response: Response, more: tuple[HeaderPair, ...]) -> Response:
    return response._replace(headers=(*response.headers, *more))
