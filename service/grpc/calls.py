"""The way of every RPC: admitted, read, answered or failed, and counted like a request over HTTP.

A handler gets the stream of messages rather than the one message that it needs: it then runs from the
request's head on, so that keys are checked before a message is read, and the deadline bounds the reading too.
With grpc.aio's own handlers of one message, the call of a client that sends none would never end.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

import grpc

from service.batching.request import Priority
from service.errors import BuffersFull, DeadlineExceeded, PayloadTooLarge, RequestTimeout
from service.grpc.statuses import status_of
from service.http.api_keys import ApiKeys, admit
from service.http.edge import Edge
from service.http.headers import SERVER_TIMING
from service.http.lifecycle import Call, Lifecycle
from service.http.routes.shared import read_priority, read_timeout
from service.http.types import Headers
from service.observability.request_ids import sent_request_id
from service.settings import Settings

METHOD = "POST"
"""The HTTP method of every RPC."""


class Incoming(NamedTuple):
    """A request's context. deadline: on the clock of `time.monotonic`."""

    headers: Headers
    call: Call
    deadline: float

    def priority(self) -> Priority:
        """Return the priority that the metadata name. Raises InvalidInput."""
        return read_priority(self.headers)


class Answer(NamedTuple):
    """A response's message. timing: the value of Server-Timing, None if no model ran."""

    message: bytes
    timing: bytes | None = None


Endpoint = Callable[[bytes, Incoming], Awaitable[Answer]]


class Calls:
    """What all RPCs share.

    keys: None if no key is required. edge: knows the proxies in front.
    """

    def __init__(self, lifecycle: Lifecycle, keys: ApiKeys | None, edge: Edge, settings: Settings) -> None:
        self._lifecycle = lifecycle
        self._keys = keys
        self._edge = edge
        self._settings = settings
        self._scheme = "http" if settings.ssl_certfile is None else "https"
        self._held_bytes = 0

    def handler(self, path: str, http_path: str, endpoint: Endpoint) -> grpc.RpcMethodHandler:
        """Return the handler of an RPC.

        http_path: the path of the same purpose: a key that opens the one opens the other.
        """

        async def serve(_: object, context: grpc.aio.ServicerContext) -> bytes:
            pairs = _pairs(context.invocation_metadata())
            call = self._start(path, pairs, context)
            deadline = call.received_at + _remaining(context, self._settings.request_timeout_seconds)
            try:
                call.api_key_name, rejected = admit(self._keys, http_path, pairs)
                if rejected is not None:
                    raise rejected
                answer = await self._answer(endpoint, dict(pairs), call, deadline, context)
            except asyncio.CancelledError:
                _note_cancelled(call, deadline)
                raise
            except Exception as error:  # the request's edge
                await _abort(context, call, error)
            call.ended(200)
            timing = [] if answer.timing is None else [(SERVER_TIMING.wire, answer.timing)]
            context.set_trailing_metadata(_metadata([*timing, *call.headers()]))
            return answer.message

        return grpc.stream_unary_rpc_method_handler(serve)

    def _start(self, path: str, pairs: list[tuple[bytes, bytes]], context: grpc.aio.ServicerContext) -> Call:
        lifecycle, headers = self._lifecycle, dict(pairs)
        call = Call(
            lifecycle,
            METHOD,
            path,
            path,
            "" if lifecycle.access_log is None else self._edge.client(_address(context.peer()), pairs),
            headers,
            sent_request_id(pairs),
            received_at=time.monotonic(),
            scheme=self._scheme,
        )
        reports = lifecycle.load_reports
        call.report = None if reports is None else reports.format_for(headers)
        return call

    async def _answer(
        self,
        endpoint: Endpoint,
        headers: Headers,
        call: Call,
        deadline: float,
        context: grpc.aio.ServicerContext,
    ) -> Answer:
        seconds = read_timeout(headers, self._settings.request_timeout_seconds)
        incoming = Incoming(headers, call, min(deadline, call.received_at + seconds))
        message = await self._read(context, incoming)
        self._held_bytes += len(message)
        try:
            most = self._settings.max_buffered_bytes
            if self._held_bytes > most:
                raise BuffersFull(f"messages of {self._held_bytes} bytes are held, expected at most {most}")
            return await endpoint(message, incoming)
        finally:
            self._held_bytes -= len(message)

    async def _read(self, context: grpc.aio.ServicerContext, incoming: Incoming) -> bytes:
        """Return the request's message. Raises RequestTimeout, PayloadTooLarge."""
        try:
            async with asyncio.timeout(incoming.deadline - time.monotonic()):
                message = await context.read()
        except TimeoutError:
            raise RequestTimeout("the message did not come before the request's deadline") from None
        if message is grpc.aio.EOF:
            # gRPC has rejected a larger one, and the client reads its status, not ours.
            most = self._settings.max_body_bytes
            raise PayloadTooLarge(f"the request has no message of at most {most} bytes, expected one")
        return bytes(message)


def _note_cancelled(call: Call, deadline: float) -> None:
    """Count a request that gRPC has cancelled: its deadline has passed, or its client has left."""
    if time.monotonic() >= deadline:
        call.failed(DeadlineExceeded("the client's deadline passed before the request was answered"))
    else:
        call.client_disconnected()


async def _abort(context: grpc.aio.ServicerContext, call: Call, error: Exception) -> NoReturn:
    """Answer a request that failed; raises what grpc.aio expects then."""
    response = call.failed(error)
    code, details = status_of(error)
    await context.abort(code, details, _metadata([*response.headers, *call.headers()]))
    raise AssertionError("abort returned")


def _remaining(context: grpc.aio.ServicerContext, longest: float) -> float:
    """Return the seconds until the deadline that the client has set, at most `longest`."""
    remaining = context.time_remaining()
    return longest if remaining is None else min(float(remaining), longest)


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[tuple[bytes, bytes]]:
    """Return metadata as ASGI has headers."""
    return [
        (name.encode(), value.encode() if isinstance(value, str) else value) for name, value in metadata or ()
    ]


def _metadata(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in headers)


def _address(peer: str) -> tuple[str, int] | None:
    """Return the address in a peer such as `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    kind, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]"), int(port)
