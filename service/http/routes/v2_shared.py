"""What the paths of requests of the Open Inference Protocol share: the fast path, ASGI and gRPC."""

from collections.abc import Sequence

from service.batching.request import InferenceResult, Priority
from service.content.inference_bodies import write_inference
from service.content.inference_requests import LOW, InferenceBody, ModelTensors
from service.http.headers import INFERENCE_HEADER
from service.http.responses import Response, to_json
from service.http.routes.shared import server_timing
from service.http.types import OCTETS
from service.models.manifest import Manifest


def tensors_of(manifest: Manifest) -> ModelTensors:
    """Return what a body needs to know of a model."""
    return ModelTensors(manifest.name, manifest.inputs, manifest.outputs)


def labels_of(manifest: Manifest) -> Sequence[str]:
    """Return the labels of the classes that a model's first output has, if any."""
    return manifest.labels if manifest.task == "classification" else ()


def scheduled(
    asked: InferenceBody, received_at: float, deadline: float, priority: Priority
) -> tuple[float, Priority]:
    """Return a request's deadline and priority: those of its headers, unless its parameters say otherwise."""
    if asked.timeout:
        deadline = min(deadline, received_at + asked.timeout * 1e-6)
    if asked.priority:
        priority = "low" if asked.priority == LOW else "normal"
    return deadline, priority


def answer(manifest: Manifest, asked: InferenceBody, result: InferenceResult) -> Response:
    """Return the response. manifest: of the version that answered.

    Raises InvalidInput if that version, newer than the one that was asked for, lacks a requested output.
    """
    tensors, labels = tensors_of(manifest), labels_of(manifest)
    fields, behind = write_inference(asked, tensors, result.version, result.outputs, labels)
    text, timing = to_json(fields), server_timing(result)
    if not behind:
        return Response(text, timing=timing, model=manifest.name)
    told = ((INFERENCE_HEADER.wire, b"%d" % len(text)),)
    body = b"".join([text, *behind])
    return Response(body, OCTETS, headers=told, timing=timing, model=manifest.name)
