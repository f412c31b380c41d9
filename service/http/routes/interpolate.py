"""GET /interpolate: the images between two latents, and two labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.content.animations import APNG, WEBP
from service.content.interpolation import METHODS, Method, between
from service.content.latents import MAX_SEED, draw_latents, random_seed
from service.errors import InvalidInput
from service.http.disconnects import DisconnectWatch
from service.http.lifecycle import Call
from service.http.negotiation import negotiate
from service.http.requests import parse_int, read_query
from service.http.responses import Response
from service.http.routes import generate
from service.http.routes.asking import AskingEndpoint
from service.http.routes.bodies import BodyDecoder
from service.http.routes.generated import Generated, labels_header, seed_header
from service.http.routes.prompts import Asker
from service.http.routes.repeats import Answered, Identity, Repeats
from service.http.routes.schemas import InterpolateQuery
from service.http.routes.shared import (
    Target,
    answered_by,
    find_target,
    parse_version,
)
from service.http.types import Headers, Receive, Scope
from service.models.manifest import Manifest
from service.models.tensors import Array
from service.observability.histograms import DeferredHistogram
from service.serving.predictor import Predictor
from service.settings import Settings

QUERY = tuple(field.alias or name for name, field in InterpolateQuery.model_fields.items())
OFFERED = (*generate.OFFERED, WEBP, APNG)
"""Media types of the responses, the default one first."""
STEPS, MAX_STEPS = 9, 64
"""How many images, if the query does not say, and at most."""


class Interpolate(AskingEndpoint):
    """The endpoint, over a predictor."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        watch: DisconnectWatch,
        bodies: BodyDecoder,
        encode_seconds: DeferredHistogram,
    ) -> None:
        super().__init__(predictor, settings, watch, bodies, encode_seconds)
        self._repeats = Repeats(settings, watch)

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        version, default = parse_version(query), self._settings.default_generator
        target = find_target(self._predictor, "generation", query.get("model"), version, default)
        manifest = target.manifest
        call.model = manifest.name
        accepted = negotiate(headers, OFFERED)
        most = min(MAX_STEPS, self._settings.max_request_rows)
        steps = parse_int("steps", query["steps"], 2, most) if "steps" in query else min(STEPS, most)
        method = _method(query)
        seed = parse_int("seed", query["seed"], 0, MAX_SEED) if "seed" in query else random_seed()
        to_seed = parse_int("to_seed", query["to_seed"], 0, MAX_SEED) if "to_seed" in query else None
        labels = labels_between(query, steps, manifest)
        asker = self._asker(headers, receive, call)
        way = Way(target, seed, to_seed, steps, method, labels, accepted)
        identity = None
        if "seed" in query:
            identity = Identity(
                way.parts(),
                manifest,
                is_exact=self._settings.determinism != "off",
                is_pinned="model" in query and "version" in query,
                exists=True,
            )
        return await self._repeats.answer(scope, headers, asker, identity, partial(self._answer, way=way))

    async def _answer(self, asker: Asker, way: "Way") -> Answered:
        manifest = way.target.manifest
        first, last = _ends(way.seed, way.to_seed, manifest)
        inputs: dict[str, Array] = {"z": between(first, last, way.steps, way.method)}
        if way.labels is not None:
            inputs["label"] = way.labels
        result = await asker.infer(way.target, inputs, way.steps)
        manifest = answered_by(self._predictor, manifest, result)
        names = None if way.labels is None else [manifest.labels[index] for index in way.labels]
        more = (seed_header(way.seed),) if names is None else (seed_header(way.seed), labels_header(names))
        facts = {"seed": way.seed, "to_seed": way.to_seed, "method": way.method}
        generated = Generated(manifest, result, way.labels, facts, more, columns=way.steps)
        return Answered(await generated.respond(way.accepted, self._encode_seconds), result, manifest)


@dataclass(frozen=True, slots=True)
class Way:
    """What a request asks for. labels: the label input, (steps,), None for a model without one."""

    target: Target
    seed: int
    to_seed: int | None
    steps: int
    method: Method
    labels: NDArray[np.int64] | None
    accepted: str

    def parts(self) -> tuple[object, ...]:
        """Return what decides the response besides the generator's version."""
        labels = None if self.labels is None else self.labels.tobytes()
        return "way", self.seed, self.to_seed, self.steps, self.method, labels, self.accepted


def _method(query: Mapping[str, str]) -> Method:
    named = query.get("method", METHODS[0])
    for method in METHODS:
        if named == method:
            return method
    raise InvalidInput(f"method is {named[:40]!r}, expected {' or '.join(METHODS)}")


def labels_between(query: Mapping[str, str], steps: int, manifest: Manifest) -> NDArray[np.int64] | None:
    """Return the label input, (steps,), or None for a model without one. Raises InvalidInput.

    A graph looks its label up by number, so there is none between two: the first half of the images, with the
    middle one, has the first.
    """
    given = [name for name in ("from", "to") if name in query]
    if manifest.input("label") is None:
        if given:
            raise InvalidInput(
                f"{given[0]} is {query[given[0]][:40]!r}, but model {manifest.name} accepts none"
            )
        return None
    first = query.get("from", manifest.labels[0])
    ends = {"from": first, "to": query.get("to", first)}
    for name, label in ends.items():
        if label not in manifest.labels:
            known = ", ".join(manifest.labels[:20])
            raise InvalidInput(f"{name} is {label[:40]!r}, expected one of {known}")
    first_half = (steps + 1) // 2
    indexes = [manifest.labels.index(label) for label in ends.values()]
    return np.repeat(np.array(indexes, np.int64), [first_half, steps - first_half])


def _ends(
    seed: int, to_seed: int | None, manifest: Manifest
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the latents of both ends, each (size,)."""
    spec = manifest.input("z")
    assert spec is not None  # a generator's manifest has it
    size = spec.shape[1]
    if to_seed is None:
        first, last = draw_latents(seed, 2, size)
        return first, last
    return draw_latents(seed, 1, size)[0], draw_latents(to_seed, 1, size)[0]
