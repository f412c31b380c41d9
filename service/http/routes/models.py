"""GET /models: the models that are being served, and the layers of their graphs."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.errors import InkserveError, InvalidInput, ModelNotFound, ModelNotReady, RepositoryError
from service.http.routes.openapi_objects import describe_errors
from service.http.routes.schemas import (
    GraphLayer,
    ModelDetail,
    ModelFailure,
    ModelGraph,
    ModelList,
    ModelSummary,
)
from service.models.catalogue import Catalogue, ModelInfo
from service.models.layers import Layer, read_layers
from service.models.manifest import MAX_VERSION, MODEL_FILE, Task, sha256_of
from service.serving.predictor import Predictor
from service.settings import Settings

NO_CATALOGUE = (ModelNotReady, InkserveError)
"""The errors of `Predictor.models`: an HTTP worker may not be connected to the engine yet."""

Version = Annotated[int | None, Query(ge=1, le=MAX_VERSION, description="The latest if absent.")]


def routes(predictor: Predictor, settings: Settings) -> APIRouter:
    """Return the routes of the list of models, and of each model's details."""
    router = APIRouter(prefix="/models", tags=["models"])

    @router.get("", summary="List models", responses=describe_errors(*NO_CATALOGUE))
    async def list_models() -> ModelList:
        """List the latest version of every model, and each version that could not be loaded."""
        models = predictor.models()
        failed = [
            ModelFailure(name=failure.name, version=failure.version, reason=failure.reason)
            for failure in models.failures
        ]
        return ModelList(
            models=[_summary(models, info, settings.kinds) for info in models.latest()],
            defaults=_defaults(models, settings),
            failed=failed,
        )

    @router.get(
        "/{name}",
        summary="Show a model",
        responses=describe_errors(InvalidInput, ModelNotFound, *NO_CATALOGUE),
    )
    async def show_model(name: Annotated[str, Path()], version: Version = None) -> ModelDetail:
        """Show a model's tensors, labels, metrics and card."""
        models = predictor.models()
        return _detail(models, models.find(name, version), settings.kinds)

    @router.get(
        "/{name}/graph",
        summary="Show a model's layers",
        responses=describe_errors(InvalidInput, ModelNotFound, *NO_CATALOGUE),
    )
    def show_graph(name: Annotated[str, Path()], version: Version = None) -> ModelGraph:
        """Show a model's layers: operators, output shapes, parameters and multiply-adds.

        Runs on a thread, because it reads the graph's file.
        """
        manifest = predictor.models().find(name, version).manifest
        folder = settings.models_dir / manifest.name / str(manifest.version)
        return _graph(manifest.name, manifest.version, _layers(folder / MODEL_FILE, manifest.sha256))

    return router


@lru_cache(64)
def _layers(path: FilePath, sha256: str) -> tuple[Layer, ...]:
    """Return the layers of a graph. Raises ModelNotFound unless the file is the one that is served."""
    try:
        seen = sha256_of(path)
        if seen == sha256:
            return tuple(read_layers(path))
    except (OSError, RepositoryError) as error:
        raise ModelNotFound(f"{path.name} of this version cannot be read any more: {error}") from error
    raise ModelNotFound(
        f"{path.name} of this version has changed: its SHA-256 is {seen}, expected {sha256}, the one served"
    )


def _graph(name: str, version: int, layers: Sequence[Layer]) -> ModelGraph:
    costs = [layer.multiply_adds for layer in layers if layer.multiply_adds is not None]
    return ModelGraph(
        name=name,
        version=version,
        layers=[
            GraphLayer(
                name=layer.name,
                operator=layer.operator,
                inputs=list(layer.inputs),
                shape=None if layer.shape is None else list(layer.shape),
                parameters=layer.parameters,
                multiply_adds=layer.multiply_adds,
            )
            for layer in layers
        ],
        parameters=sum(layer.parameters for layer in layers),
        multiply_adds=sum(costs) if len(costs) == len(layers) else None,
    )


def _defaults(models: Catalogue, settings: Settings) -> dict[str, str]:
    """Return the name of the default model for each task that has a route and a model."""
    chosen: dict[Task, str | None] = {
        "classification": settings.default_classifier,
        "generation": settings.default_generator,
        "encoding": settings.default_encoder,
    }
    for task, name in chosen.items():
        with suppress(ModelNotFound):
            chosen[task] = name or models.default(task).manifest.name
    return {task: name for task, name in chosen.items() if name is not None}


def _detail(models: Catalogue, info: ModelInfo, kinds: tuple[str, ...]) -> ModelDetail:
    manifest = info.manifest
    return ModelDetail(
        **_summary(models, info, kinds).model_dump(),
        inputs=list(manifest.inputs),
        outputs=list(manifest.outputs),
        labels=list(manifest.labels),
        metrics=manifest.metrics,
        sha256=manifest.sha256,
        command=manifest.command,
        batch_sizes=list(info.batch_sizes),
        slow_batch_sizes=list(info.slow_batch_sizes),
        differing_batch_sizes=list(info.differing_batch_sizes),
        card=info.card,
    )


def _summary(models: Catalogue, info: ModelInfo, kinds: tuple[str, ...]) -> ModelSummary:
    manifest = info.manifest
    cost = manifest.metrics.get("multiply_adds")
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        versions=models.versions(manifest.name),
        task=manifest.task,
        description=manifest.description,
        preprocess=manifest.picture_preprocess,
        multiply_adds=cost if isinstance(cost, int) else None,
        answered_by=models.preferred(manifest.name, kinds).name,
    )
