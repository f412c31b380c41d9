"""POST /classify: images in any of four formats -> labels and probabilities."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.datastructures import Headers as FormHeaders
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.batching.request import Done, InferenceRequest, InferenceResult, Priority
from service.content import codecs
from service.errors import InvalidInput, PayloadTooLarge, UnsupportedMedia
from service.http.disconnects import DisconnectWatch
from service.http.fast.endpoint import Body
from service.http.fast.head import Head
from service.http.lifecycle import Call
from service.http.negotiation import media_type, negotiate
from service.http.requests import parse_int, read_body, read_query
from service.http.responses import Response, to_json
from service.http.routes.schemas import ClassifyQuery, ClassifyRequest, invalid_input
from service.http.routes.shared import (
    DECODE_ON_LOOP_BYTES,
    SERVER_TIMING,
    Target,
    answered_by,
    find_target,
    load_json,
    off_loop,
    parse_version,
    raw_headers,
    raw_response,
    read_priority,
    read_timeout,
    server_timing,
)
from service.http.types import FORM, JPEG, JSON, OCTETS, PNG, Headers, Receive, Scope
from service.models.catalogue import Catalogue
from service.models.manifest import Manifest
from service.models.tensors import Array, dtype_of
from service.serving.checks import check_inputs
from service.serving.predictor import Cancel, Predictor, infer
from service.settings import Settings

QUERY = tuple(ClassifyQuery.model_fields)
ACCEPTED = (OCTETS, PNG, JPEG, JSON, FORM)
"""Media types of bodies, as errors and the OpenAPI description list them."""
OFFERED = (JSON, OCTETS)
"""Media types of responses, the default one first."""
UNDECLARED = ("", "application/x-www-form-urlencoded")
"""No Content-Type, or what curl sends if none was given: the body's first bytes decide."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request's head asks for.

    timeout: seconds that the response may take. accepted: the response's media type.
    """

    target: Target
    timeout: float
    priority: Priority
    accepted: str
    top_k: int | None

    def respond(self, predictor: Predictor, result: InferenceResult) -> Response:
        """Return the response that it asks for."""
        manifest = answered_by(predictor, self.target.manifest, result)
        probabilities = result.outputs[0]
        if self.accepted == OCTETS:
            return raw_response(self.target, result, probabilities)
        predictions = _predictions(probabilities, manifest.labels, self.top_k)
        body = {"model": manifest.name, "version": result.version, "predictions": predictions}
        return Response(to_json(body), timing=server_timing(result), model=manifest.name)


class Classify:
    """The endpoint, over a predictor."""

    def __init__(self, predictor: Predictor, settings: Settings, watch: DisconnectWatch) -> None:
        self._predictor = predictor
        self._settings = settings
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request that came through ASGI."""
        arrived = time.monotonic()
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._target(query)
        call.model = target.manifest.name
        wish = self._wish(target, query, headers)
        body = await read_body(headers, receive, self._settings.max_body_bytes)
        spec = target.manifest.inputs[0]
        inputs = {spec.name: await self._decode(headers, body, target.manifest)}
        rows = check_inputs(target.manifest, inputs, self._settings.max_request_rows)
        deadline = arrived + wish.timeout
        request = InferenceRequest(
            call.model, target.version, inputs, rows, deadline, wish.priority, call.submitted()
        )
        result = await self._watch.guard(receive, infer(self._predictor, request))
        call.note_inference(result)
        return wish.respond(self._predictor, result)

    def plan(self, head: Head) -> "RawPlan | None":
        """Return how to answer without ASGI: only if the body may be raw rows. Raises as the endpoint
        does."""
        kind = media_type(head.headers)
        if head.method != "POST" or (kind != OCTETS and kind not in UNDECLARED):
            return None
        if not 0 < head.content_length <= self._settings.max_body_bytes:
            return None
        query = read_query(head.query, QUERY)
        wish = self._wish(self._target(query), query, head.headers)
        return RawPlan(self._predictor, self._settings.max_request_rows, wish, kind, head.content_length)

    def _target(self, query: Mapping[str, str]) -> Target:
        return find_target(
            self._predictor,
            "classification",
            query.get("model"),
            parse_version(query),
            self._settings.default_classifier,
        )

    def _wish(self, target: Target, query: Mapping[str, str], headers: Headers) -> Wish:
        accepted = negotiate(headers, OFFERED)
        timeout = read_timeout(headers, self._settings.request_timeout_seconds)
        top_k = _top_k(query, len(target.manifest.labels), accepted)
        return Wish(target, timeout, read_priority(headers), accepted, top_k)

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
        """Every file of a form, in its order: a PNG, a JPEG, or raw rows."""
        most = self._settings.max_request_rows
        parts: list[Array] = []
        for content in await _form_files(headers, body, most):
            if codecs.is_image(content):
                large = len(content) > DECODE_ON_LOOP_BYTES
                parts.append(await off_loop(large, self._from_image, content, manifest))
            else:
                parts.append(codecs.rows_from_raw(content, manifest.inputs[0], most))
        rows = np.concatenate(parts)
        if len(rows) > most:
            raise PayloadTooLarge(f"form has {len(rows)} images, expected at most {most}")
        return rows


class RawPlan:
    """How requests are answered whose body is raw rows; see `service.http.fast.endpoint.Plan`."""

    def __init__(
        self, predictor: Predictor, max_rows: int, wish: Wish, kind: str, content_length: int
    ) -> None:
        self.model = wish.target.manifest.name
        self.any_body = kind not in UNDECLARED
        self._predictor = predictor
        self._catalogue: Catalogue = predictor.models()
        self._spec = wish.target.manifest.inputs[0]
        self._dtype = dtype_of(self._spec)
        self._max_rows = max_rows
        self._wish = wish
        rows, rest = divmod(content_length, codecs.row_bytes(self._spec))
        fits = not rest and 1 <= rows <= max_rows
        self._shape = (rows, *self._spec.shape[1:]) if fits else None
        # An undeclared body may be a picture, and a large one is rejected later: assume one row.
        self._likely_rows = rows if self.any_body and 1 <= rows <= max_rows else 1

    def is_valid(self) -> bool:
        """Whether the models are still those that it was made for."""
        return self._predictor.models() is self._catalogue

    def accepts(self, body: Body) -> bool:
        """Whether the body is in none of the other formats."""
        return self.any_body or not codecs.is_image(bytes(body[: codecs.SIGNATURE_BYTES]))

    def check_admission(self) -> str | None:
        """Return the reason to reject the rows now, or None; see `Predictor.check_admission`."""
        wish = self._wish
        return self._predictor.check_admission(
            self.model, wish.target.version, self._likely_rows, wish.timeout, wish.priority
        )

    def note_rejection(self) -> None:
        """See `Predictor.note_rejection`."""
        self._predictor.note_rejection(self.model, self._wish.target.version)

    def submit(self, body: Body, traceparent: str | None, done: Done, *, admitted: bool) -> Cancel:
        """Submit the body's rows; see `Predictor.submit`."""
        wish = self._wish
        deadline = time.monotonic() + wish.timeout
        if self._shape is None:
            images = codecs.rows_from_raw(body, self._spec, self._max_rows)  # says what is wrong
        else:
            images = np.ndarray(self._shape, self._dtype, body)
        request = InferenceRequest(
            self.model,
            wish.target.version,
            {self._spec.name: images},
            len(images),
            deadline,
            wish.priority,
            traceparent,
        )
        return self._predictor.submit(request, done, admitted=admitted)

    def respond(self, result: InferenceResult) -> Response:
        """Return the response to the request."""
        if self._wish.accepted != OCTETS:
            return self._wish.respond(self._predictor, result)
        # As `raw_response`, in a third of the calls.
        probabilities = result.outputs[0]
        headers = raw_headers(self.model, result.version, probabilities.shape)
        timing = SERVER_TIMING % (result.queue_seconds * 1e3, result.compute_seconds * 1e3, result.batch_rows)
        return Response(probabilities.tobytes(), OCTETS, 200, headers, timing, self.model)


class _FormParser(MultiPartParser):
    """Keeps files in memory: they are there already, bounded, and the file system may be read-only."""

    spool_max_size = 0  # SpooledTemporaryFile's value for "never to the disk"


async def _form_files(headers: Headers, body: bytes, most: int) -> list[bytes]:
    """Return the contents of a multipart form's files, at least one. Raises InvalidInput."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _FormParser(FormHeaders(raw=list(headers.items())), stream(), max_files=most, max_fields=16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"form cannot be read: {error.message}") from None
    fields = [name for name, value in form.multi_items() if not isinstance(value, UploadFile)]
    files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    await form.close()
    if fields or not files:
        raise InvalidInput(f"form has {len(files)} files and the fields {fields[:5]}, expected only files")
    return files


def _top_k(query: Mapping[str, str], classes: int, accepted: str) -> int | None:
    if "top_k" not in query:
        return None
    if accepted == OCTETS:
        raise InvalidInput(f"top_k is given with Accept: {OCTETS}, which holds every probability")
    return parse_int("top_k", query["top_k"], 1, classes)


def _predictions(
    probabilities: NDArray[np.float32], labels: Sequence[str], top_k: int | None
) -> list[dict[str, object]]:
    """Return each row's prediction, as `schemas.Prediction` describes it."""
    if top_k is None:
        best = probabilities.argmax(axis=1).tolist()
        return [
            {
                "label": labels[index],
                "probability": row[index],
                "probabilities": dict(zip(labels, row, strict=True)),
            }
            for index, row in zip(best, probabilities.tolist(), strict=True)
        ]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k].tolist()
    return [
        {
            "label": labels[top[0]],
            "probability": row[top[0]],
            "probabilities": {labels[index]: row[index] for index in top},
        }
        for top, row in zip(order, probabilities.tolist(), strict=True)
    ]
