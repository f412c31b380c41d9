"""The response to a request of the Open Inference Protocol."""

from service.batching.request import InferenceResult
from service.content.inference_bodies import write_inference
from service.content.inference_requests import InferenceBody, ModelTensors
from service.http.headers import INFERENCE_HEADER
from service.http.responses import Response, to_json
from service.http.routes.shared import server_timing
from service.http.types import OCTETS
from service.models.manifest import Manifest


def tensors_of(manifest: Manifest) -> ModelTensors:
    """Return what a body needs to know of a model."""
    return ModelTensors(manifest.name, manifest.inputs, manifest.outputs)


def answer(manifest: Manifest, asked: InferenceBody, result: InferenceResult) -> Response:
    """Return the response. manifest: of the version that answered.

    Raises InvalidInput if that version, newer than the one that was asked for, lacks a requested output.
    """
    labels = manifest.labels if manifest.task == "classification" else ()
    fields, behind = write_inference(asked, tensors_of(manifest), result.version, result.outputs, labels)
    text, timing = to_json(fields), server_timing(result)
    if not behind:
        return Response(text, timing=timing, model=manifest.name)
    told = ((INFERENCE_HEADER.wire, b"%d" % len(text)),)
    body = b"".join([text, *behind])
    return Response(body, OCTETS, headers=told, timing=timing, model=manifest.name)
