"""gRPC's health checks (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).

Kubernetes' gRPC probes call Check; clients that balance load may keep a Watch on every server.
"""

import asyncio
import contextlib

import grpc

from service.errors import InvalidInput, ModelNotFound
from service.grpc.calls import Answer, Incoming
from service.grpc.health_pb2 import HealthCheckRequest, HealthCheckResponse
from service.grpc.inference import SERVICE as INFERENCE
from service.grpc.inference import parse
from service.grpc.statuses import status_of
from service.serving.predictor import Predictor

SERVICE = "grpc.health.v1.Health"
HTTP_PATH = "/v2/health/ready"
SERVICES = ("", INFERENCE)

WATCH_SECONDS = 0.5
"""Interval between two looks at the service's readiness, for Watch."""


class Health:
    """The RPCs. They end with `stop`."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End every Watch: the server waits for calls in flight before it stops."""
        self._stopping.set()

    async def check(self, message: bytes, _: Incoming) -> Answer:
        """Report whether a service, or with an empty name the server, accepts new work."""
        asked = parse(HealthCheckRequest, message)
        if asked.service not in SERVICES:
            raise ModelNotFound(f"service {asked.service[:80]!r} is unknown, expected {INFERENCE} or none")
        return Answer(self._response().SerializeToString())

    async def watch(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Send what Check reports now, then every change of it. Not counted: it has no end of its own."""
        message = await context.read()
        try:
            asked = parse(HealthCheckRequest, b"" if message is grpc.aio.EOF else message)
        except InvalidInput as error:
            await context.abort(*status_of(error))
        told = None
        while not self._stopping.is_set():
            response = self._response()
            if asked.service not in SERVICES:
                response = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            if response != told:
                told = response
                await context.write(response.SerializeToString())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._stopping.wait()

    def _response(self) -> HealthCheckResponse:
        ready = self._predictor.ready() and not self._stopping.is_set()
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)
