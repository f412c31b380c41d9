"""POST /v2/models/{name}/infer: any model's tensors, as clients of the Open Inference Protocol send them.

Knows no task: the client must know what the tensors mean.
"""

from collections.abc import Mapping
from dataclasses import replace

from service.content.body_jobs import ON_LOOP_BYTES
from service.errors import InvalidInput
from service.http.fast.head import Head
from service.http.headers import INFERENCE_HEADER
from service.http.lifecycle import Call
from service.http.paths import Family
from service.http.responses import Response
from service.http.routes.asking import AskingEndpoint
from service.http.routes.bodies import CONTENT_ENCODING
from service.http.routes.shared import (
    Target,
    answered_by,
    find_manifest,
    off_loop,
    parse_version,
    read_priority,
    read_timeout,
)
from service.http.routes.v2_plan import WRITE_ON_LOOP_ELEMENTS, InferPlan, row_elements
from service.http.routes.v2_shared import answer, scheduled, tensors_of
from service.http.types import JSON, OCTETS, Headers, Receive, Scope
from service.serving.checks import check_inputs

PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
FAMILY = Family(PATHS[0], PATHS)
"""Requests with and without a version in their path are counted under one route."""


class Infer(AskingEndpoint):
    """The endpoint, over a predictor."""

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request that came through ASGI."""
        headers: Headers = dict(scope["headers"])
        target = self._target(scope["path_params"])
        manifest = target.manifest
        call.model = manifest.name
        asker = self._asker(headers, receive, call)
        json_bytes = _json_bytes(headers)
        kind = _kind(json_bytes)
        async with self._bodies.reading(scope, headers, receive, kind, asker.deadline) as body:
            asked = await self._bodies.inference(body, json_bytes, tensors_of(manifest))
        del body
        deadline, priority = scheduled(asked, call.received_at, asker.deadline, asker.priority)
        asker = replace(asker, deadline=deadline, priority=priority)
        rows = check_inputs(manifest, asked.inputs, self._settings.max_request_rows)
        result = await asker.infer(target, asked.inputs, rows)
        manifest = answered_by(self._predictor, manifest, result)
        large = rows * row_elements(manifest) > WRITE_ON_LOOP_ELEMENTS
        with self._encode_seconds.of("inference").timing():
            return await off_loop(large, answer, manifest, asked, result)

    def plan(self, head: Head) -> InferPlan | None:
        """Return the fast path's plan, or None if the body may be large to decode.

        Raises the same errors as the endpoint.
        """
        json_bytes, size = _json_bytes(head.headers), head.content_length
        if head.method != "POST" or CONTENT_ENCODING in head.headers:
            return None
        if not 0 < size <= self._settings.max_body_bytes:
            return None
        if (size if json_bytes is None else json_bytes) > ON_LOOP_BYTES:
            return None
        target = self._target(head.parameters)
        return InferPlan(
            self._predictor,
            target,
            read_timeout(head.headers, self._settings.request_timeout_seconds),
            read_priority(head.headers),
            self._bodies.inference_job(json_bytes, tensors_of(target.manifest)),
            size,
            self._bodies.seconds_of("inference"),
            self._encode_seconds.of("inference"),
        )

    def _target(self, path: Mapping[str, str]) -> Target:
        version = parse_version(path)
        models, kinds = self._predictor.models(), self._settings.kinds
        return Target(find_manifest(models, path["name"], version, kinds), version)


def _kind(json_bytes: int | None) -> str:
    """Return the media type by which a body is read: bytes of tensors wait for no decoder, much JSON does."""
    if json_bytes is None:
        return JSON
    return OCTETS if json_bytes <= ON_LOOP_BYTES else ""


def _json_bytes(headers: Headers) -> int | None:
    """Return the length of a body's JSON, or None if no header tells it. Raises InvalidInput."""
    text = headers.get(INFERENCE_HEADER.wire)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        seen = text[:40].decode("latin-1")
        raise InvalidInput(f"{INFERENCE_HEADER.name} is {seen!r}, expected a number of bytes")
    return int(text)
