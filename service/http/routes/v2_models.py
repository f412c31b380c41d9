"""GET /v2 and below: the server and its models, as clients of the Open Inference Protocol read them."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Body, Path

from service.content.inference_requests import LOW, NORMAL
from service.errors import InkserveError, InvalidInput, ModelNotFound, ModelNotReady
from service.http.routes.openapi_objects import describe_errors
from service.http.routes.v2_schemas import (
    ConfiguredTensor,
    DynamicBatching,
    IndexedModel,
    IndexRequest,
    ModelConfig,
    ModelMetadata,
    ModelReadiness,
    ResponseCache,
    ServerMetadata,
    TensorMetadata,
    TransactionPolicy,
)
from service.models.catalogue import Catalogue, ModelInfo
from service.models.manifest import MAX_VERSION, TensorSpec
from service.observability.metrics import package_version
from service.serving.predictor import Predictor
from service.settings import Settings

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics")
"""Triton's extensions of the protocol that are served."""

PLATFORM = "onnx_onnxv1"

NO_CATALOGUE = (ModelNotReady, InkserveError)
LATEST = describe_errors(ModelNotFound, *NO_CATALOGUE)
PINNED = describe_errors(InvalidInput, ModelNotFound, *NO_CATALOGUE)

Name = Annotated[str, Path()]
Index = Annotated[IndexRequest | None, Body(openapi_examples={"what is ready": {"value": {"ready": True}}})]
Version = Annotated[int, Path(ge=1, le=MAX_VERSION)]


def routes(predictor: Predictor, settings: Settings) -> APIRouter:
    """Return the routes of the metadata."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("", summary="Describe the server")
    async def server_metadata() -> ServerMetadata:
        """Tell the name of the server, its version and its extensions of the protocol."""
        return describe_server(EXTENSIONS)

    def find(name: str, version: int | None) -> ModelInfo:
        return predictor.models().find(name, version)

    @router.get("/models/{name}", summary="Describe a model", responses=LATEST)
    async def model_metadata(name: Name) -> ModelMetadata:
        """Describe the tensors of a model's latest version."""
        return describe_model(find(name, None), predictor)

    @router.get("/models/{name}/versions/{version}", summary="Describe a model version", responses=PINNED)
    async def version_metadata(name: Name, version: Version) -> ModelMetadata:
        """Describe the tensors of a model version."""
        return describe_model(find(name, version), predictor)

    @router.get("/models/{name}/ready", summary="Readiness of a model", responses=LATEST)
    async def model_ready(name: Name) -> ModelReadiness:
        """Report that a model is loaded and warm."""
        return ModelReadiness(name=find(name, None).manifest.name, ready=True)

    @router.get(
        "/models/{name}/versions/{version}/ready", summary="Readiness of a model version", responses=PINNED
    )
    async def version_ready(name: Name, version: Version) -> ModelReadiness:
        """Report that a model version is loaded and warm."""
        return ModelReadiness(name=find(name, version).manifest.name, ready=True)

    @router.get("/models/{name}/config", summary="Configuration of a model", responses=LATEST)
    async def model_config(name: Name) -> ModelConfig:
        """Show what Triton's model configuration says of a model's latest version."""
        return describe_config(find(name, None), settings)

    @router.get(
        "/models/{name}/versions/{version}/config",
        summary="Configuration of a model version",
        responses=PINNED,
    )
    async def version_config(name: Name, version: Version) -> ModelConfig:
        """Show what Triton's model configuration says of a model version."""
        return describe_config(find(name, version), settings)

    @router.post(
        "/repository/index",
        summary="List model versions",
        responses=describe_errors(InvalidInput, *NO_CATALOGUE),
    )
    async def repository_index(asked: Index = None) -> list[IndexedModel]:
        """List the model versions that are served, and those that cannot be."""
        return index_of(predictor.models(), only_ready=asked is not None and asked.ready)

    return router


def describe_server(extensions: Iterable[str]) -> ServerMetadata:
    """Return what clients may know of the server. extensions: of the protocol that they use."""
    return ServerMetadata(name="inkserve", version=package_version(), extensions=list(extensions))


def index_of(models: Catalogue, *, only_ready: bool) -> list[IndexedModel]:
    """Return the model versions that are served, then those that cannot be, unless `only_ready`."""
    served = [
        IndexedModel(name=info.manifest.name, version=str(info.manifest.version), state="READY", reason="")
        for info in models
    ]
    if only_ready:
        return served
    failed = [
        IndexedModel(
            name=failure.name,
            version="" if failure.version is None else str(failure.version),
            state="UNAVAILABLE",
            reason=failure.reason,
        )
        for failure in models.failures
    ]
    return served + failed


def describe_model(info: ModelInfo, predictor: Predictor) -> ModelMetadata:
    """Return the tensors and the versions of a model."""
    manifest = info.manifest
    return ModelMetadata(
        name=manifest.name,
        versions=[str(version) for version in predictor.models().versions(manifest.name)],
        platform=PLATFORM,
        inputs=[_tensor(spec) for spec in manifest.inputs],
        outputs=[_tensor(spec) for spec in manifest.outputs],
    )


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


def describe_config(info: ModelInfo, settings: Settings) -> ModelConfig:
    """Return what Triton's model configuration says of a model version."""
    manifest = info.manifest
    return ModelConfig(
        name=manifest.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=settings.max_request_rows,
        input=[_configured(spec) for spec in manifest.inputs],
        output=[_configured(spec) for spec in manifest.outputs],
        dynamic_batching=DynamicBatching(
            preferred_batch_size=list(info.batch_sizes),
            max_queue_delay_microseconds=round(settings.max_batch_delay_seconds * 1e6),
            priority_levels=LOW,
            default_priority_level=NORMAL,
        ),
        model_transaction_policy=TransactionPolicy(decoupled=False),
        response_cache=ResponseCache(enable=False),
    )


def _configured(spec: TensorSpec) -> ConfiguredTensor:
    return ConfiguredTensor(name=spec.name, data_type=f"TYPE_{spec.datatype}", dims=list(spec.shape[1:]))
