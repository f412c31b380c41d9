"""The RPCs of the Open Inference Protocol over a predictor: what `/v2` offers over HTTP."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from pydantic import BaseModel

from service.batching.request import InferenceRequest
from service.errors import InvalidInput, ModelNotFound, ModelNotReady
from service.grpc import open_inference_pb2 as pb
from service.grpc.calls import Answer, Endpoint, Incoming
from service.grpc.tensors import read_infer, write_infer
from service.http.routes.shared import answered_by, find_manifest, parse_version, server_timing
from service.http.routes.v2_models import describe_config, describe_model, describe_server, index_of
from service.http.routes.v2_shared import labels_of, scheduled, tensors_of
from service.http.routes.v2_statistics import chosen, describe
from service.models.catalogue import ModelInfo
from service.observability.metrics import Metrics
from service.observability.statistics import Gather, collect_statistics
from service.serving.checks import check_inputs
from service.serving.predictor import Predictor, infer
from service.settings import Settings

SERVICE = "inference.GRPCInferenceService"

EXTENSIONS = ("classification", "model_configuration", "schedule_policy", "statistics")
"""Triton's extensions of the protocol that are served over gRPC."""

FORMAT = "inference"
"""What decoding and encoding are counted under, as over HTTP."""

M = TypeVar("M", bound=Message)


class Inference:
    """The RPCs. Each takes a serialized request and returns a serialized response."""

    def __init__(
        self, predictor: Predictor, settings: Settings, metrics: Metrics, gather: Gather | None = None
    ) -> None:
        self._predictor = predictor
        self._settings = settings
        self._collect_statistics = partial(collect_statistics, metrics, gather)
        self._decode_seconds = metrics.decode_seconds
        self._encode_seconds = metrics.encode_seconds

    def endpoints(self) -> Mapping[str, tuple[str, Endpoint]]:
        """Return each RPC by its name, with the HTTP path that the same API keys open."""
        return {
            "ServerLive": ("/v2/health/live", self.server_live),
            "ServerReady": ("/v2/health/ready", self.server_ready),
            "ModelReady": ("/v2/models", self.model_ready),
            "ServerMetadata": ("/v2", self.server_metadata),
            "ModelMetadata": ("/v2/models", self.model_metadata),
            "ModelConfig": ("/v2/models", self.model_config),
            "ModelInfer": ("/v2/models", self.model_infer),
            "ModelStatistics": ("/v2/models", self.model_statistics),
            "RepositoryIndex": ("/v2/repository/index", self.repository_index),
        }

    async def server_live(self, message: bytes, _: Incoming) -> Answer:
        """Report that the event loop runs."""
        parse(pb.ServerLiveRequest, message)
        return _answer(pb.ServerLiveResponse(live=True))

    async def server_ready(self, message: bytes, _: Incoming) -> Answer:
        """Report whether new work is accepted."""
        parse(pb.ServerReadyRequest, message)
        return _answer(pb.ServerReadyResponse(ready=self._predictor.ready()))

    async def model_ready(self, message: bytes, _: Incoming) -> Answer:
        """Report whether a model is loaded and warm; an unknown one is not."""
        asked = parse(pb.ModelReadyRequest, message)
        try:
            self._find(asked.name, asked.version)
        except (ModelNotFound, ModelNotReady):
            return _answer(pb.ModelReadyResponse(ready=False))
        return _answer(pb.ModelReadyResponse(ready=True))

    async def server_metadata(self, message: bytes, _: Incoming) -> Answer:
        """Tell the name of the server, its version and its extensions of the protocol."""
        parse(pb.ServerMetadataRequest, message)
        return _answer(_filled(pb.ServerMetadataResponse(), describe_server(EXTENSIONS)))

    async def model_metadata(self, message: bytes, _: Incoming) -> Answer:
        """Describe the tensors of a model."""
        asked = parse(pb.ModelMetadataRequest, message)
        described = describe_model(self._find(asked.name, asked.version), self._predictor)
        return _answer(_filled(pb.ModelMetadataResponse(), described))

    async def model_config(self, message: bytes, _: Incoming) -> Answer:
        """Show what Triton's model configuration says of a model."""
        asked = parse(pb.ModelConfigRequest, message)
        config = describe_config(self._find(asked.name, asked.version), self._settings)
        response = pb.ModelConfigResponse()
        _filled(response.config, config)
        return _answer(response)

    async def model_statistics(self, message: bytes, _: Incoming) -> Answer:
        """Tell what a model has computed, or all of them if none is named."""
        asked = parse(pb.ModelStatisticsRequest, message)
        version = _version(asked.version)
        models = self._predictor.models()
        infos = chosen(self._predictor, asked.name, version) if asked.name else models
        described = describe(infos, await self._collect_statistics())
        return _answer(_filled(pb.ModelStatisticsResponse(), described))

    async def repository_index(self, message: bytes, _: Incoming) -> Answer:
        """List the model versions that are served, and those that cannot be."""
        asked = parse(pb.RepositoryIndexRequest, message)
        response = pb.RepositoryIndexResponse()
        for each in index_of(self._predictor.models(), only_ready=asked.ready):
            _filled(response.models.add(), each)
        return _answer(response)

    async def model_infer(self, message: bytes, incoming: Incoming) -> Answer:
        """Run a model's rows."""
        with self._decode_seconds.of(FORMAT).timing():
            request = parse(pb.ModelInferRequest, message)
            version = _version(request.model_version)
            models, kinds = self._predictor.models(), self._settings.kinds
            manifest = find_manifest(models, request.model_name, version, kinds)
            incoming.call.model = manifest.name
            priority = incoming.priority()
            asked = read_infer(request, tensors_of(manifest), self._settings.max_request_rows)
            del request
        call = incoming.call
        deadline, priority = scheduled(asked, call.received_at, incoming.deadline, priority)
        rows = check_inputs(manifest, asked.inputs, self._settings.max_request_rows)
        result = await infer(
            self._predictor,
            InferenceRequest(
                manifest.name, version, asked.inputs, rows, deadline, priority, call.submitted()
            ),
        )
        call.note_inference(result)
        with self._encode_seconds.of(FORMAT).timing():
            manifest = answered_by(self._predictor, manifest, result)
            tensors, labels = tensors_of(manifest), labels_of(manifest)
            response = write_infer(asked, tensors, result.version, result.outputs, labels)
            return Answer(response.SerializeToString(), server_timing(result))

    def _find(self, name: str, version: str) -> ModelInfo:
        return self._predictor.models().find(name, _version(version))


def parse(kind: type[M], message: bytes) -> M:
    """Parse a message. Raises InvalidInput."""
    try:
        parsed: M = kind.FromString(message)
    except DecodeError as error:
        raise InvalidInput(f"the message is no {kind.__name__}: {error}") from None
    return parsed


def _version(text: str) -> int | None:
    """Return the version that a request pins, or None. Raises InvalidInput."""
    return parse_version({"version": text} if text else {})


def _filled(message: Any, described: BaseModel) -> Any:
    """Return a message with what HTTP tells in JSON: the fields have the same names."""
    return ParseDict(described.model_dump(), message)


def _answer(message: Any) -> Answer:
    return Answer(message.SerializeToString())
