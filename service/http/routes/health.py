"""Liveness and readiness, answered from memory; paths of the Open Inference Protocol."""

from fastapi import APIRouter

from service.errors import ShuttingDown
from service.serving.predictor import Predictor


def routes(predictor: Predictor) -> APIRouter:
    """The probes."""
    router = APIRouter(prefix="/v2/health", tags=["operations"])

    @router.get("/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers at all."""
        return {"live": True}

    @router.get("/ready", responses={503: {"description": "Not ready: send no requests."}})
    async def ready() -> dict[str, bool]:
        """Whether every model is loaded and warm, and new requests are welcome."""
        if not predictor.ready():
            raise ShuttingDown("the service is not ready")
        return {"ready": True}

    return router
