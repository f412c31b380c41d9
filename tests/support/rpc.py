"""A real gRPC server over a predictor, and a client of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from service.addresses import address_of, open_listeners
from service.grpc import health_pb2, inference
from service.grpc import open_inference_pb2 as pb
from service.grpc.server import RpcServer
from service.http.api_keys import ApiKeys
from service.http.lifecycle import Lifecycle
from service.observability.metrics import Metrics
from service.serving.predictor import Predictor
from service.settings import Settings

MODEL_INFER = f"/{inference.SERVICE}/ModelInfer"

Metadata = Sequence[tuple[str, str]]


class Client:
    """Calls RPCs by their names."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def call(
        self, request: Any, metadata: Metadata = (), timeout: float | None = None
    ) -> grpc.aio.UnaryUnaryCall:
        """Call the RPC that a request is named after."""
        name = type(request).__name__.removesuffix("Request")
        stub = self.channel.unary_unary(
            f"/{inference.SERVICE}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(pb, f"{name}Response").FromString,
        )
        return stub(request, metadata=metadata, timeout=timeout)

    async def send(self, message: bytes, path: str = MODEL_INFER) -> bytes:
        """Send any bytes as the message of an RPC."""
        answer: bytes = await self.channel.unary_unary(path)(message)
        return answer

    async def check(self, service: str = "") -> int:
        """Return the serving status in a health check."""
        message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        answer = await self.send(message, "/grpc.health.v1.Health/Check")
        status: int = health_pb2.HealthCheckResponse.FromString(answer).status
        return status


class Served:
    """A server that runs, and a client of it. calls: the metrics' labels of each call that has ended."""

    def __init__(self, server: RpcServer, address: str, client: Client, metrics: Metrics) -> None:
        self.server = server
        self.address = address
        self.client = client
        self._metrics = metrics

    @property
    def calls(self) -> dict[tuple[str, str, str], float]:
        """How many calls have ended, by the last part of their route, by model and status."""
        return {
            (
                sample.labels["route"].rpartition("/")[2],
                sample.labels["model"],
                sample.labels["status"],
            ): sample.value
            for family in self._metrics.requests.collect()
            for sample in family.samples
            if sample.name == "inkserve_requests_total"
        }

    async def counts(self, *call: str) -> None:
        """Wait until such a call has ended: a client may know it earlier."""
        async with asyncio.timeout(10):
            while call not in self.calls:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def served(
    predictor: Predictor,
    settings: Settings,
    keys: ApiKeys | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Served]:
    """Serve gRPC on a port of the system's choice. metrics: of its own if None."""
    metrics = metrics or Metrics()
    server = RpcServer(predictor, settings, Lifecycle(metrics), keys)
    listeners = open_listeners("127.0.0.1", 0)
    address = address_of(listeners[0])
    await server.start(listeners)
    try:
        async with channel_to(address, credentials) as channel:
            yield Served(server, address, Client(channel), metrics)
    finally:
        await server.stop(0)


def channel_to(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """Return a channel with connections of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


def infer_request(images: np.ndarray, model: str = "first-pixel", **fields: object) -> pb.ModelInferRequest:
    """Ask a classifier for images."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()], **fields)  # type: ignore[arg-type]
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request
