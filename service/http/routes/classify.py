"""POST /classify: images in any of four formats -> labels and probabilities."""

from collections.abc import Mapping

import numpy as np
from pydantic import ValidationError

from service.batching.request import InferenceRequest
from service.content import codecs
from service.errors import InvalidInput, PayloadTooLarge, UnsupportedMedia
from service.http.disconnects import DisconnectWatch
from service.http.fast.head import Head
from service.http.lifecycle import Call
from service.http.negotiation import media_type, negotiate
from service.http.requests import parse_int, read_body, read_query
from service.http.responses import Response
from service.http.routes.classify_options import ClassifyOptions
from service.http.routes.forms import read_files
from service.http.routes.raw_plan import UNDECLARED, RawPlan
from service.http.routes.schemas import ClassifyQuery, ClassifyRequest, invalid_input
from service.http.routes.shared import (
    DECODE_ON_LOOP_BYTES,
    Target,
    find_target,
    load_json,
    off_loop,
    parse_version,
    read_priority,
    read_timeout,
)
from service.http.types import FORM, JPEG, JSON, OCTETS, PNG, Headers, Receive, Scope
from service.models.manifest import Manifest
from service.models.tensors import Array
from service.serving.checks import check_inputs
from service.serving.predictor import Predictor, infer
from service.settings import Settings

QUERY = tuple(ClassifyQuery.model_fields)
ACCEPTED = (OCTETS, PNG, JPEG, JSON, FORM)
"""Media types of bodies, as errors and the OpenAPI description list them."""
OFFERED = (JSON, OCTETS)
"""Media types of responses, the default one first."""


class Classify:
    """The endpoint, over a predictor."""

    def __init__(self, predictor: Predictor, settings: Settings, watch: DisconnectWatch) -> None:
        self._predictor = predictor
        self._settings = settings
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request that came through ASGI."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._target(query)
        call.model = target.manifest.name
        options = self._options(target, query, headers)
        body = await read_body(headers, receive, self._settings.max_body_bytes)
        spec = target.manifest.inputs[0]
        inputs = {spec.name: await self._decode(headers, body, target.manifest)}
        rows = check_inputs(target.manifest, inputs, self._settings.max_request_rows)
        deadline = call.received_at + options.timeout
        request = InferenceRequest(
            call.model, target.version, inputs, rows, deadline, options.priority, call.submitted()
        )
        result = await self._watch.guard(receive, infer(self._predictor, request))
        call.note_inference(result)
        return options.respond(self._predictor, result)

    def plan(self, head: Head) -> "RawPlan | None":
        """Return the fast path's plan, or None if the body cannot be raw rows.

        Raises the same errors as the endpoint.
        """
        kind = media_type(head.headers)
        if head.method != "POST" or (kind != OCTETS and kind not in UNDECLARED):
            return None
        if not 0 < head.content_length <= self._settings.max_body_bytes:
            return None
        query = read_query(head.query, QUERY)
        options = self._options(self._target(query), query, head.headers)
        return RawPlan(self._predictor, self._settings.max_request_rows, options, kind, head.content_length)

    def _target(self, query: Mapping[str, str]) -> Target:
        return find_target(
            self._predictor,
            "classification",
            query.get("model"),
            parse_version(query),
            self._settings.default_classifier,
        )

    def _options(self, target: Target, query: Mapping[str, str], headers: Headers) -> ClassifyOptions:
        accepted = negotiate(headers, OFFERED)
        timeout = read_timeout(headers, self._settings.request_timeout_seconds)
        top_k = _top_k(query, len(target.manifest.labels), accepted)
        return ClassifyOptions(target, timeout, read_priority(headers), accepted, top_k)

    async def _decode(self, headers: Headers, body: bytes, manifest: Manifest) -> Array:
        """Return the images as the model's input, whatever format they came in."""
        kind, spec = media_type(headers), manifest.inputs[0]
        if kind == OCTETS or (kind in UNDECLARED and not codecs.is_image(body)):
            return codecs.rows_from_raw(body, spec, self._settings.max_request_rows)
        if kind == JSON:
            return await off_loop(len(body) > DECODE_ON_LOOP_BYTES, self._from_json, body, manifest)
        if kind == FORM:
            return await self._from_form(headers, body, manifest)
        if kind in UNDECLARED or kind.startswith("image/"):
            return await off_loop(len(body) > DECODE_ON_LOOP_BYTES, self._from_image, body, manifest)
        raise UnsupportedMedia(
            f"Content-Type is {kind[:80]!r}, expected {', '.join(ACCEPTED[:-1])} or {ACCEPTED[-1]}"
        )

    def _from_image(self, body: bytes, manifest: Manifest) -> Array:
        limit = self._settings.max_image_pixels
        return codecs.image_to_rows(body, manifest.inputs[0], limit, manifest.picture_preprocess)

    def _from_json(self, body: bytes, manifest: Manifest) -> Array:
        value = load_json(body)
        try:
            request = ClassifyRequest.model_validate(value if isinstance(value, dict) else {"images": value})
        except ValidationError as error:
            raise invalid_input(error) from None
        limits = self._settings
        return codecs.rows_from_json(
            request.images,
            manifest.inputs[0],
            limits.max_request_rows,
            limits.max_image_pixels,
            manifest.picture_preprocess,
        )

    async def _from_form(self, headers: Headers, body: bytes, manifest: Manifest) -> Array:
        """Return the rows of every file of a form, in order: a PNG, a JPEG, or raw rows."""
        most = self._settings.max_request_rows
        parts: list[Array] = []
        for content in await read_files(headers, body, most):
            if codecs.is_image(content):
                large = len(content) > DECODE_ON_LOOP_BYTES
                parts.append(await off_loop(large, self._from_image, content, manifest))
            else:
                parts.append(codecs.rows_from_raw(content, manifest.inputs[0], most))
        rows = np.concatenate(parts)
        if len(rows) > most:
            raise PayloadTooLarge(f"form has {len(rows)} images, expected at most {most}")
        return rows


def _top_k(query: Mapping[str, str], classes: int, accepted: str) -> int | None:
    if "top_k" not in query:
        return None
    if accepted == OCTETS:
        raise InvalidInput(f"top_k is given with Accept: {OCTETS}, which holds every probability")
    return parse_int("top_k", query["top_k"], 1, classes)
