"""Liveness and readiness probes, answered from memory, at the paths of the Open Inference Protocol."""

from fastapi import APIRouter

from service.errors import InkserveError, ShuttingDown
from service.http.routes.openapi_objects import describe_errors
from service.http.routes.schemas import Liveness, Readiness
from service.serving.predictor import Predictor


def routes(predictor: Predictor) -> APIRouter:
    """Return the routes of the two probes."""
    router = APIRouter(prefix="/v2/health", tags=["operations"])

    @router.get("/live", summary="Liveness")
    async def live() -> Liveness:
        """Report that the process responds."""
        return Liveness(live=True)

    @router.get("/ready", summary="Readiness", responses=describe_errors(ShuttingDown, InkserveError))
    async def ready() -> Readiness:
        """Report that every model is loaded and warm, and that new requests are accepted."""
        if not predictor.ready():
            raise ShuttingDown("the service is not ready")
        return Readiness(ready=True)

    return router
