"""GET /v2/models/stats and below: what the models have computed, in the words of Triton's statistics."""

from collections.abc import Awaitable, Callable, Iterable, Mapping

from fastapi import APIRouter

from service.http.routes.openapi_objects import describe_errors
from service.http.routes.v2_models import LATEST, NO_CATALOGUE, PINNED, Name, Version
from service.http.routes.v2_schemas import (
    Duration,
    InferenceStatistics,
    ModelStatistics,
    StatisticsOfModels,
)
from service.models.catalogue import ModelInfo
from service.observability.statistics import Statistics
from service.serving.predictor import Predictor

Collect = Callable[[], Awaitable[Mapping[tuple[str, int], Statistics]]]
"""Collects the statistics of the whole service, by model and version."""


def routes(predictor: Predictor, collect: Collect) -> APIRouter:
    """Return the routes of the statistics."""
    router = APIRouter(prefix="/v2/models", tags=["open inference protocol"])

    @router.get("/stats", summary="Statistics of all models", responses=describe_errors(*NO_CATALOGUE))
    async def all_statistics() -> StatisticsOfModels:
        """Tell what every model version that is served has computed."""
        return describe(predictor.models(), await collect())

    @router.get("/{name}/stats", summary="Statistics of a model", responses=LATEST)
    async def model_statistics(name: Name) -> StatisticsOfModels:
        """Tell what each version of a model has computed."""
        return describe(chosen(predictor, name, None), await collect())

    @router.get("/{name}/versions/{version}/stats", summary="Statistics of a model version", responses=PINNED)
    async def version_statistics(name: Name, version: Version) -> StatisticsOfModels:
        """Tell what a model version has computed."""
        return describe(chosen(predictor, name, version), await collect())

    return router


def chosen(predictor: Predictor, name: str, version: int | None) -> list[ModelInfo]:
    """Return a version of a model, or all of them. Raises ModelNotFound."""
    models = predictor.models()
    versions = models.versions(name) if version is None else [version]
    return [models.find(name, each) for each in versions]


def describe(
    infos: Iterable[ModelInfo], collected: Mapping[tuple[str, int], Statistics]
) -> StatisticsOfModels:
    """Return the statistics of these model versions; zeros if none were collected."""
    keys = [(info.manifest.name, info.manifest.version) for info in infos]
    described = [_described(*key, collected.get(key, Statistics())) for key in keys]
    return StatisticsOfModels(model_stats=described)


def _described(name: str, version: int, counts: Statistics) -> ModelStatistics:
    answered = counts.requests - counts.failed_requests
    copied = _duration(answered, 0.0)
    never = _duration(0, 0.0)
    return ModelStatistics(
        name=name,
        version=str(version),
        last_inference=round(counts.last_batch * 1e3),
        inference_count=round(counts.rows - counts.failed_rows),
        execution_count=round(counts.batches),
        inference_stats=InferenceStatistics(
            success=_duration(answered, counts.queue_seconds + counts.compute_seconds),
            fail=_duration(counts.failed_requests, counts.failed_compute_seconds),
            queue=_duration(counts.requests, counts.queue_seconds),
            compute_input=copied,
            compute_infer=_duration(answered, counts.compute_seconds),
            compute_output=copied,
            cache_hit=never,
            cache_miss=never,
        ),
    )


def _duration(count: float, seconds: float) -> Duration:
    return Duration(count=max(0, round(count)), ns=max(0, round(seconds * 1e9)))
