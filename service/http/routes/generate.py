"""GET or POST /generate: a label and a seed, a prompt, or latents -> images."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.batching.request import InferenceResult
from service.content.brief import shown
from service.content.json_bodies import JsonNames
from service.content.latents import random_seed
from service.errors import InvalidInput, PayloadTooLarge, UnsupportedMedia
from service.http.disconnects import DisconnectWatch
from service.http.headers import UNDERSTOOD
from service.http.lifecycle import Call
from service.http.negotiation import media_type, negotiate
from service.http.requests import read_query
from service.http.responses import Response
from service.http.routes.asking import AskingEndpoint
from service.http.routes.bodies import Body, BodyDecoder
from service.http.routes.drawing import Drawing, Suiting
from service.http.routes.generated import LABELLED_ROWS, Generated, seed_header
from service.http.routes.prompts import (
    EXPECTED,
    Asker,
    Understood,
    candidates_for,
    captioners_of,
    find_search,
)
from service.http.routes.repeats import Answered, Identity, Repeats, version_parts
from service.http.routes.schemas import GenerateRequest, current_fields, invalid_input
from service.http.routes.shared import (
    Target,
    answered_by,
    find_target,
)
from service.http.routes.verification import Judge, Verdict, find_judge
from service.http.types import JSON, OCTETS, PNG, Headers, Receive, Scope
from service.models.manifest import Manifest
from service.models.tensors import Array
from service.observability.histograms import DeferredHistogram
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


class Generate(AskingEndpoint):
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
        self._kinds = settings.kinds

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request."""
        headers: Headers = dict(scope["headers"])
        asker = self._asker(headers, receive, call)
        accepted = negotiate(headers, OFFERED)
        kind = media_type(headers)
        async with self._bodies.reading(scope, headers, receive, kind, asker.deadline) as body:
            wanted = await self._wanted(scope, body, kind)
            target = find_target(
                self._predictor,
                "generation",
                wanted.model,
                wanted.version,
                self._settings.default_generator,
                self._kinds,
            )
            call.model = target.manifest.name
            if wanted.prompt is not None:
                _check_alone(wanted, body, kind)
            z = await self._sent_latents(wanted, body, kind, target.manifest)
        del body  # its latents are kept, while they wait and run
        wish = self._wish(wanted, target, z, accepted)
        identity = None if wanted.seed is None else self._identity(wish)
        return await self._repeats.answer(scope, headers, asker, identity, partial(self._answer, wish=wish))

    def _identity(self, wish: "Wish") -> Identity:
        """Return what decides the response to a seeded request. Raises ModelNotFound for a prompt."""
        wanted, drawing, judge = wish.wanted, wish.drawing, wish.judge
        labels = None if drawing.labels is None else drawing.labels.tobytes()
        readers = []
        if wanted.prompt is not None:
            search = find_search(self._predictor).manifest
            readers = [search, *captioners_of(self._predictor, search)]
        if judge is not None:
            readers.append(judge.target.manifest)
        parts = (
            *(drawing.seed, drawing.rows.tobytes(), labels, bool(wanted.grid), wanted.prompt),
            *(judge is not None, bool(wanted.reject), wish.accepted),
            *(version_parts(reader) for reader in readers),
        )
        determinism = self._settings.determinism
        return Identity(
            parts,
            drawing.target.manifest,
            is_exact=determinism == "all" or (determinism == "generation" and judge is None),
            is_pinned=wanted.model is not None and wanted.version is not None and not readers,
            exists=wanted.prompt is None,
        )

    def _wish(self, wanted: GenerateRequest, target: Target, z: Array | None, accepted: str) -> "Wish":
        """Return what is to be drawn. z: the latents that the client sent, if it did. Raises RequestError."""
        count = (1 if z is None else len(z)) if wanted.count is None else wanted.count
        most = self._settings.max_request_rows
        if count > most:
            raise PayloadTooLarge(f"count is {count}, expected at most {most}")
        seed = None
        if z is None:
            seed = random_seed() if wanted.seed is None else wanted.seed
        rows = np.arange(count)
        labels = None
        if wanted.prompt is None:
            rows, labels = _laid_out(wanted, count, target.manifest)
            if len(rows) > most:
                raise PayloadTooLarge(f"the grid has {len(rows)} images, expected at most {most}")
        judge = self._judge(wanted, target.manifest)
        if judge is not None and accepted != JSON and len(rows) > LABELLED_ROWS:
            raise PayloadTooLarge(
                f"{len(rows)} images are to be verified, expected at most {LABELLED_ROWS}, whose labels fit "
                f"a header, or Accept: {JSON}"
            )
        return Wish(wanted, Drawing(target, seed, rows, labels, z), judge, accepted)

    def _judge(self, wanted: GenerateRequest, manifest: Manifest) -> Judge | None:
        """Return the classifier that reads the images, if one shall."""
        if not wanted.verify and not wanted.reject:
            return None
        name = wanted.verify if isinstance(wanted.verify, str) else None
        return find_judge(self._predictor, self._settings, name, manifest)

    async def _answer(self, asker: Asker, wish: "Wish") -> Answered:
        drawing, manifest = wish.drawing, wish.drawing.target.manifest
        if wish.wanted.prompt is not None:
            drawing = await self._suiting(asker, drawing, wish.wanted.prompt)
        verdict = None
        if wish.judge is None:
            result = await drawing.draw(asker)
        else:
            result, verdict = await drawing.draw_verified(asker, wish.judge, reject=bool(wish.wanted.reject))
        manifest = answered_by(self._predictor, manifest, result)
        columns = wish.columns if wish.wanted.grid else None
        generated = _generated(manifest, result, drawing, verdict, columns)
        return Answered(await generated.respond(wish.accepted, self._encode_seconds), result, manifest)

    async def _suiting(self, asker: Asker, drawing: Drawing, prompt: str) -> Drawing:
        """Return the drawing with what the prompt asks for.

        Images of its digit, several for each if it names a style, of which the best is kept: image i depends
        only on the prompt, the seed and i.
        """
        search = find_search(self._predictor)
        understood, _ = await asker.read(search, prompt)
        label = _prompted_label(understood, prompt, drawing.target.manifest)
        count = len(drawing.rows)
        each = candidates_for(understood, count, self._settings.max_request_rows)
        labels = np.full(count, label, np.int64)
        return replace(drawing, labels=labels, suiting=Suiting(search, understood, each))

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

    async def _sent_latents(
        self, wanted: GenerateRequest, body: Body, kind: str, manifest: Manifest
    ) -> Array | None:
        """Return z, (rows, size), from the body, or None if there is none. Raises RequestError."""
        is_raw = bool(body.content) and kind == OCTETS
        if wanted.z is None and not is_raw:
            return None
        if wanted.seed is not None:
            raise InvalidInput("latents are given more than once, expected one of seed, z or a raw body")
        if wanted.reject:
            raise InvalidInput("reject and latents are both given, expected a seed: others would be drawn")
        spec = manifest.input("z")
        assert spec is not None  # a generator's manifest has it
        z = await self._bodies.rows(body, "rows" if kind == OCTETS else "json", spec, NAMES)
        if not np.isfinite(z).all():
            raise InvalidInput("z holds a value that is not finite, expected numbers")
        if wanted.count is not None and wanted.count != len(z):
            raise InvalidInput(f"count is {wanted.count}, but z has {len(z)} rows")
        return z


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that has been read: what is to be drawn, who reads it, and in which media type it is wanted.

    drawing: without what its prompt asks for, which is not known yet.
    """

    wanted: GenerateRequest
    drawing: Drawing
    judge: Judge | None
    accepted: str

    @property
    def columns(self) -> int:
        """The columns of a grid: one for each latent."""
        return int(self.drawing.rows.max()) + 1


def _generated(
    manifest: Manifest,
    result: InferenceResult,
    drawing: Drawing,
    verdict: Verdict | None,
    columns: int | None,
) -> Generated:
    """Return the images with what the response says of them. columns: of a grid."""
    facts: dict[str, object] = {"seed": drawing.seed}
    headers = () if drawing.seed is None else (seed_header(drawing.seed),)
    if drawing.suiting is not None:
        understood = drawing.suiting.understood
        facts["understood"] = understood.fields()
        headers = (*headers, (UNDERSTOOD.wire, understood.header()))
    if verdict is None:
        return Generated(manifest, result, drawing.labels, facts, headers, columns=columns)
    facts["verification"] = verdict.facts()
    headers = (*headers, *verdict.headers())
    return Generated(manifest, result, drawing.labels, facts, headers, verdict.each(), columns)


def _laid_out(
    wanted: GenerateRequest, count: int, manifest: Manifest
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return each image's row of the latents and its label input, None for a model without one.

    In a grid each label has a row of images and each latent a column. Raises InvalidInput.
    """
    rows = np.arange(count)
    field, label = _wanted_label(wanted)
    if manifest.input("label") is None:
        if label != MIXED:
            raise InvalidInput(f"{field} is {label[:40]!r}, but model {manifest.name} accepts no label")
        return rows, None
    if label == MIXED and wanted.grid:
        labels = np.arange(len(manifest.labels), dtype=np.int64)
        return np.tile(rows, len(labels)), np.repeat(labels, count)
    if label == MIXED:
        return rows, rows.astype(np.int64) % len(manifest.labels)
    if label not in manifest.labels:
        known = ", ".join(manifest.labels[:20])
        raise InvalidInput(f"{field} is {label[:40]!r}, expected one of {known} or {MIXED}")
    return rows, np.full(count, manifest.labels.index(label), np.int64)


def _check_alone(wanted: GenerateRequest, body: Body, kind: str) -> None:
    """Raise InvalidInput if a prompt comes with something else that decides what is drawn."""
    given = [name for name in ("label", "digit", "z") if getattr(wanted, name) is not None]
    if wanted.grid:
        given.append("grid")
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
