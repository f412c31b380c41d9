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
    text = to_json(fields)
    if not behind:
        return Response(text, timing=server_timing(result), model=manifest.name)
    return _with_bytes(manifest.name, text, behind, result)


def _with_bytes(model: str, text: bytes, behind: Sequence[bytes], result: InferenceResult) -> Response:
    """Return a response whose JSON is followed by the bytes of tensors."""
    told = ((INFERENCE_HEADER.wire, b"%d" % len(text)),)
    body = b"".join([text, *behind])
    return Response(body, OCTETS, headers=told, timing=server_timing(result), model=model)


class RepeatedAnswers:
    """The responses to a request that comes again and again, if all of its outputs are behind the JSON.

    The JSON then says nothing of the elements, and is made once for each version and shape.
    asked: without its inputs.
    """

    def __init__(self, asked: InferenceBody) -> None:
        self._asked = asked
        self._made_for: tuple[object, ...] = ()
        self._text = b""
        self._places: Sequence[int] = ()

    @classmethod
    def of(cls, asked: InferenceBody) -> "RepeatedAnswers | None":
        """Return the responses to a request, or None if their JSON holds elements."""
        named = asked.outputs
        binary = all(each.binary and not each.classes for each in named) if named else asked.binary
        return cls(asked) if binary else None

    def answer(self, manifest: Manifest, result: InferenceResult) -> Response:
        """Do what `answer` does for the request."""
        outputs = result.outputs
        made_for = result.version, *[output.shape for output in outputs]
        if made_for != self._made_for:
            fields, _ = write_inference(self._asked, tensors_of(manifest), result.version, outputs, ())
            names = [spec.name for spec in manifest.outputs]
            asked = [each.name for each in self._asked.outputs] or names
            self._text = to_json(fields)
            self._places = [names.index(name) for name in asked]
            self._made_for = made_for
        behind = [outputs[place].tobytes() for place in self._places]
        return _with_bytes(manifest.name, self._text, behind, result)
