"""GET or POST /generate: a label and a seed, a prompt, or latents -> images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.batching.request import InferenceResult
from service.content.brief import shown
from service.content.json_bodies import JsonNames
from service.content.latents import draw_latents, random_seed
from service.errors import InvalidInput, PayloadTooLarge, UnsupportedMedia
from service.http.disconnects import DisconnectWatch
from service.http.headers import UNDERSTOOD
from service.http.lifecycle import Call
from service.http.negotiation import media_type, negotiate
from service.http.requests import read_query
from service.http.responses import Response
from service.http.routes.bodies import Body, BodyDecoder
from service.http.routes.generated import Generated, seed_header
from service.http.routes.prompts import EXPECTED, Asker, Understood, candidates_for, find_search
from service.http.routes.schemas import GenerateRequest, current_fields, invalid_input
from service.http.routes.shared import (
    Target,
    answered_by,
    find_target,
    read_priority,
    read_timeout,
)
from service.http.types import JSON, OCTETS, PNG, Headers, Receive, Scope
from service.models.manifest import Manifest, TensorSpec
from service.models.tensors import Array
from service.serving.predictor import Predictor
from service.settings import Settings

QUERY = tuple(name for name in GenerateRequest.model_fields if name != "z")
"""The fields that may be in the query: all but latents."""
ACCEPTED = (JSON, OCTETS)
"""Media types of bodies, as errors and the OpenAPI description list them."""
OFFERED = (PNG, JSON, OCTETS)
"""Media types of responses, the default one first."""
NAMES = JsonNames(current_fields(GenerateRequest), "z", former=("digit",))
MIXED = "mixed"


class Generate:
    """The endpoint, over a predictor."""

    def __init__(
        self, predictor: Predictor, settings: Settings, watch: DisconnectWatch, bodies: BodyDecoder
    ) -> None:
        self._predictor = predictor
        self._settings = settings
        self._watch = watch
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request."""
        headers: Headers = dict(scope["headers"])
        deadline = call.received_at + read_timeout(headers, self._settings.request_timeout_seconds)
        priority = read_priority(headers)
        accepted = negotiate(headers, OFFERED)
        kind = media_type(headers)
        async with self._bodies.reading(scope, headers, receive, kind, deadline) as body:
            wanted = await self._wanted(scope, body, kind)
            target = find_target(
                self._predictor, "generation", wanted.model, wanted.version, self._settings.default_generator
            )
            call.model = target.manifest.name
            if wanted.prompt is not None:
                _check_alone(wanted, body, kind)
            else:
                z, seed = await self._latents(wanted, body, kind, target.manifest)
        del body  # its latents are kept, while they wait and run
        asker = Asker(self._predictor, self._watch, receive, call, deadline, priority)
        if wanted.prompt is not None:
            return await self._suiting(asker, wanted, wanted.prompt, target, accepted)
        labels = _label_indexes(wanted, len(z), target.manifest)
        inputs = {"z": z} if labels is None else {"z": z, "label": labels}
        result = await asker.infer(target, inputs, len(z))
        manifest = answered_by(self._predictor, target.manifest, result)
        return await _generated(manifest, result, seed, labels).respond(accepted)

    async def _suiting(
        self, asker: Asker, wanted: GenerateRequest, prompt: str, target: Target, accepted: str
    ) -> Response:
        """Answer a prompt: draw images of its digit, several for each if it names a style, and keep the best.

        Image i depends only on the prompt, the seed and i.
        """
        search = find_search(self._predictor)
        understood, _ = await asker.read(search, prompt)
        label = _prompted_label(understood, prompt, target.manifest)
        count, seed = wanted.count or 1, random_seed() if wanted.seed is None else wanted.seed
        each = candidates_for(understood, count, self._settings.max_request_rows)
        spec = target.manifest.input("z")
        assert spec is not None  # a generator's manifest has it
        z = draw_latents(seed, count * each, spec.shape[1])
        labels = np.full(len(z), label, np.int64)
        result = await asker.infer(target, {"z": z, "label": labels}, len(z))
        if each > 1:
            rows = await asker.choose(search, understood, result.outputs[0])
            result = result._replace(outputs=(result.outputs[0][rows],))
        manifest = answered_by(self._predictor, target.manifest, result)
        return await _generated(manifest, result, seed, labels[:count], understood).respond(accepted)

    async def _wanted(self, scope: Scope, body: Body, kind: str) -> GenerateRequest:
        """Return the fields of the query and of a JSON body. kind: the body's media type."""
        values: dict[str, Any] = dict(read_query(scope["query_string"], QUERY))
        if body.content and kind == JSON:
            values = _merge(values, await self._bodies.fields(body, NAMES))
        elif body.content and kind != OCTETS:
            raise UnsupportedMedia(f"Content-Type is {kind[:80]!r}, expected {' or '.join(ACCEPTED)}")
        try:
            return GenerateRequest.model_validate(values)
        except ValidationError as error:
            raise invalid_input(error) from None

    async def _latents(
        self, wanted: GenerateRequest, body: Body, kind: str, manifest: Manifest
    ) -> tuple[Array, int | None]:
        """Return z, (rows, size), and the seed that it was drawn from, None if the client sent z."""
        spec = manifest.input("z")
        assert spec is not None  # a generator's manifest has it
        most = self._settings.max_request_rows
        if wanted.z is not None or (body.content and kind == OCTETS):
            return await self._sent_latents(wanted, body, kind, spec), None
        count = wanted.count or 1
        if count > most:
            raise PayloadTooLarge(f"count is {count}, expected at most {most}")
        seed = random_seed() if wanted.seed is None else wanted.seed
        return draw_latents(seed, count, spec.shape[1]), seed

    async def _sent_latents(self, wanted: GenerateRequest, body: Body, kind: str, spec: TensorSpec) -> Array:
        """Return z, (rows, size), from the body. Raises InvalidInput, PayloadTooLarge."""
        if wanted.seed is not None:
            raise InvalidInput("latents are given more than once, expected one of seed, z or a raw body")
        z = await self._bodies.rows(body, "rows" if kind == OCTETS else "json", spec, NAMES)
        if not np.isfinite(z).all():
            raise InvalidInput("z holds a value that is not finite, expected numbers")
        if wanted.count is not None and wanted.count != len(z):
            raise InvalidInput(f"count is {wanted.count}, but z has {len(z)} rows")
        return z


def _generated(
    manifest: Manifest,
    result: InferenceResult,
    seed: int | None,
    labels: NDArray[np.int64] | None,
    understood: Understood | None = None,
) -> Generated:
    """Return the images with what the response says of them. seed: None if the client sent the latents."""
    facts: dict[str, object] = {"seed": seed}
    headers = () if seed is None else (seed_header(seed),)
    if understood is not None:
        facts["understood"] = understood.fields()
        headers = (*headers, (UNDERSTOOD.wire, understood.header()))
    return Generated(manifest, result, labels, facts, headers)


def _label_indexes(wanted: GenerateRequest, rows: int, manifest: Manifest) -> NDArray[np.int64] | None:
    """Return the label input, (rows,), or None for a model without one. Raises InvalidInput."""
    field, label = _wanted_label(wanted)
    if manifest.input("label") is None:
        if label != MIXED:
            raise InvalidInput(f"{field} is {label[:40]!r}, but model {manifest.name} accepts no label")
        return None
    if label == MIXED:
        return np.arange(rows, dtype=np.int64) % len(manifest.labels)
    if label not in manifest.labels:
        known = ", ".join(manifest.labels[:20])
        raise InvalidInput(f"{field} is {label[:40]!r}, expected one of {known} or {MIXED}")
    return np.full(rows, manifest.labels.index(label), np.int64)


def _check_alone(wanted: GenerateRequest, body: Body, kind: str) -> None:
    """Raise InvalidInput if a prompt comes with something else that decides what is drawn."""
    given = [name for name in ("label", "digit", "z") if getattr(wanted, name) is not None]
    if body.content and kind == OCTETS:
        given.append("a raw body")
    if given:
        raise InvalidInput(f"prompt and {given[0]} are both given, expected only one of them")


def _prompted_label(understood: Understood, prompt: str, manifest: Manifest) -> int:
    """Return the label input for a prompt. Raises InvalidInput if it names no digit, or an unknown one."""
    if manifest.input("label") is None:
        raise InvalidInput(f"a prompt is given, but model {manifest.name} accepts no label")
    if understood.label not in manifest.labels:
        seen = (
            "no digit"
            if understood.label is None
            else f"{understood.label}, which {manifest.name} cannot draw"
        )
        raise InvalidInput(f"prompt is {shown(prompt)}, which names {seen}: {EXPECTED}")
    return manifest.labels.index(understood.label)


def _wanted_label(wanted: GenerateRequest) -> tuple[str, str]:
    """Return the field that the client used for the label, and the label. Raises InvalidInput."""
    if wanted.label is not None and wanted.digit is not None:
        raise InvalidInput("label and digit are both given, expected only label")
    if wanted.digit is not None:
        return "digit", str(wanted.digit)
    return "label", MIXED if wanted.label is None else str(wanted.label)


def _merge(query: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    twice = sorted(query.keys() & body.keys())
    if twice:
        raise InvalidInput(f"{', '.join(twice)} is given in the query and in the body, expected once")
    return query | body
