"""The gRPC server: its ports, its bounds and its end. Knows nothing of models or messages."""

import logging
import socket
from collections.abc import Sequence

import grpc

from service.addresses import bracketed
from service.errors import InkserveError
from service.grpc import health, inference
from service.grpc.calls import Calls
from service.grpc.tls import open_credentials
from service.http.api_keys import ApiKeys
from service.http.edge import Edge
from service.http.lifecycle import Lifecycle
from service.http.server import RPC_CONNECTIONS
from service.observability.statistics import Gather
from service.serving.predictor import Predictor
from service.settings import Settings

STREAMS_PER_CONNECTION = 512
"""Calls that one connection may have in flight; its others wait at the client. As many as may be queued for a
model by default: clients usually have one connection."""

MIN_PING_SECONDS = 10
"""Clients that ping more often than this are disconnected. gRPC's own limit is 5 minutes, longer than many
balancers keep an idle connection, which pings are to prevent."""

PING_SECONDS = 60
PONG_SECONDS = 20
"""A connection is pinged this often, and closed if no answer comes in this time: its client is gone."""


class RpcServer:
    """A server over a predictor.

    lifecycle: of HTTP, whose metrics, log and traces get these requests too.
    gather: collects the metrics of the whole service, if it has several processes.
    shared: other processes listen on the same port.
    Raises SettingsError.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        lifecycle: Lifecycle,
        keys: ApiKeys | None,
        gather: Gather | None = None,
        *,
        shared: bool = False,
    ) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_not_of_a_client_that_left)
        self._credentials = open_credentials(settings)
        self._health = health.Health(predictor)
        self._server = grpc.aio.server(options=_options(settings, shared=shared))
        calls = Calls(lifecycle, keys, Edge.of(settings), settings)
        endpoints = inference.Inference(predictor, settings, lifecycle.metrics, gather).endpoints()
        self._add(
            inference.SERVICE,
            {
                name: calls.handler(f"/{inference.SERVICE}/{name}", *endpoint)
                for name, endpoint in endpoints.items()
            },
        )
        check = calls.handler(f"/{health.SERVICE}/Check", health.HTTP_PATH, self._health.check)
        watch = grpc.stream_stream_rpc_method_handler(self._health.watch)
        self._add(health.SERVICE, {"Check": check, "Watch": watch})

    def _add(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Listen on the addresses of these sockets, which are bound, do not listen, and are closed.

        gRPC opens sockets of its own; it would choose another port 0 for each address. Raises InkserveError.
        """
        for listener in listeners:
            host, port = listener.getsockname()[:2]
            address = f"{bracketed(host)}:{port}"
            try:
                if self._credentials is None:
                    self._server.add_insecure_port(address)
                else:
                    self._server.add_secure_port(address, self._credentials)
            except RuntimeError as error:
                raise InkserveError(f"{address} cannot be listened on by gRPC: {error}") from error
            finally:
                listener.close()
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Refuse new calls and connections; wait for the calls in flight, then cancel those that are left."""
        self._health.stop()
        await self._server.stop(seconds)


def _is_not_of_a_client_that_left(record: logging.LogRecord) -> bool:
    """Whether a log line is not the traceback of a response whose client left at the same moment."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _options(settings: Settings, *, shared: bool) -> list[tuple[str, int]]:
    """Return gRPC's channel arguments, which its C core documents in grpc/impl/channel_arg_names.h."""
    options = {
        "grpc.so_reuseport": int(shared),
        "grpc.max_receive_message_length": settings.max_body_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.max_metadata_size": settings.max_head_bytes,
        "grpc.absolute_max_metadata_size": settings.max_head_bytes,
        "grpc.max_concurrent_streams": STREAMS_PER_CONNECTION,
        "grpc.max_allowed_incoming_connections": min(settings.max_connections, RPC_CONNECTIONS),
        "grpc.server_handshake_timeout_ms": round(settings.head_timeout_seconds * 1e3),
        "grpc.max_connection_idle_ms": round(settings.keep_alive_seconds * 1e3),
        "grpc.keepalive_time_ms": PING_SECONDS * 1000,
        "grpc.keepalive_timeout_ms": PONG_SECONDS * 1000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": MIN_PING_SECONDS * 1000,
    }
    if settings.connection_max_age_seconds:
        options["grpc.max_connection_age_ms"] = round(settings.connection_max_age_seconds * 1e3)
    return list(options.items())
