"""POST /v2/models/{name}/infer: any model's tensors, as clients of the Open Inference Protocol send them.

Knows no task: the client must know what the tensors mean.
"""

from collections.abc import Mapping
from dataclasses import replace

from service.batching.request import InferenceResult
from service.content.inference_bodies import LOW, InferenceBody, ModelTensors, write_inference
from service.errors import InvalidInput
from service.http.headers import INFERENCE_HEADER
from service.http.lifecycle import Call
from service.http.responses import Response, to_json
from service.http.routes.asking import AskingEndpoint
from service.http.routes.shared import (
    Target,
    answered_by,
    find_manifest,
    off_loop,
    parse_version,
    server_timing,
)
from service.http.types import JSON, OCTETS, Headers, Receive, Scope
from service.models.manifest import Manifest
from service.serving.checks import check_inputs

ROUTE = "/v2/models/{name}/infer"
"""The route that requests with and without a version in their path are counted under."""

PATHS = (ROUTE, "/v2/models/{name}/versions/{version}/infer")

WRITE_ON_LOOP_ELEMENTS = 16 * 1024
"""JSON of more elements is written on a thread."""


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
        # Bytes of tensors need no decoder, so they are not held for one.
        kind = JSON if json_bytes is None else OCTETS
        async with self._bodies.reading(scope, headers, receive, kind, asker.deadline) as body:
            asked = await self._bodies.inference(body, json_bytes, tensors_of(manifest))
        del body
        if asked.timeout:
            asker = replace(asker, deadline=min(asker.deadline, call.received_at + asked.timeout * 1e-6))
        if asked.priority:
            asker = replace(asker, priority="low" if asked.priority == LOW else "normal")
        rows = check_inputs(manifest, asked.inputs, self._settings.max_request_rows)
        result = await asker.infer(target, asked.inputs, rows)
        with self._encode_seconds.of("inference").timing():
            return await self._respond(answered_by(self._predictor, manifest, result), asked, result)

    def _target(self, path: Mapping[str, str]) -> Target:
        version = parse_version(path)
        models, kinds = self._predictor.models(), self._settings.kinds
        return Target(find_manifest(models, path["name"], version, kinds), version)

    async def _respond(self, manifest: Manifest, asked: InferenceBody, result: InferenceResult) -> Response:
        elements = sum(array.size for array in result.outputs)
        large = elements > WRITE_ON_LOOP_ELEMENTS
        body, json_bytes = await off_loop(large, _encoded, manifest, asked, result)
        timing, name = server_timing(result), manifest.name
        if json_bytes is None:
            return Response(body, timing=timing, model=name)
        told = ((INFERENCE_HEADER.wire, b"%d" % json_bytes),)
        return Response(body, OCTETS, headers=told, timing=timing, model=name)


def tensors_of(manifest: Manifest) -> ModelTensors:
    """Return what a body needs to know of a model."""
    return ModelTensors(manifest.name, manifest.inputs, manifest.outputs)


def _encoded(manifest: Manifest, asked: InferenceBody, result: InferenceResult) -> tuple[bytes, int | None]:
    """Return the response's body, and the length of its JSON if tensors follow it."""
    labels = manifest.labels if manifest.task == "classification" else ()
    answer, behind = write_inference(asked, tensors_of(manifest), result.version, result.outputs, labels)
    text = to_json(answer)
    return b"".join([text, *behind]), len(text) if behind else None


def _json_bytes(headers: Headers) -> int | None:
    """Return the length of a body's JSON, or None if no header tells it. Raises InvalidInput."""
    text = headers.get(INFERENCE_HEADER.wire)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        seen = text[:40].decode("latin-1")
        raise InvalidInput(f"{INFERENCE_HEADER.name} is {seen!r}, expected a number of bytes")
    return int(text)
