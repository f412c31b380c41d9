"""The gRPC server on a real port: keys, certificates, bounds, clients that leave, and its end."""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from service.addresses import open_listeners
from service.errors import InkserveError, SettingsError
from service.grpc import open_inference_pb2 as pb
from service.grpc.health_pb2 import HealthCheckRequest, HealthCheckResponse
from service.grpc.inference import SERVICE
from service.grpc.server import RpcServer
from service.http.api_keys import ApiKeys
from service.http.lifecycle import Lifecycle
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.authorities import Authority
from tests.support.held import Held
from tests.support.http import image
from tests.support.http import settings as tiny
from tests.support.rpc import MODEL_INFER, Client, Metadata, Served, channel_to, infer_request, served

KEY, OTHER = "a-key-of-the-test-0123", "the-next-key-of-it-456"
REQUEST = infer_request(np.stack([image(7)]))
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


async def code_of(call: grpc.aio.UnaryUnaryCall) -> str:
    name: str = (await call.code()).name
    return name


def bearer(key: str) -> Metadata:
    return [("authorization", f"Bearer {key}")]


async def test_keys_open_what_they_open_over_http(predictor: LocalPredictor, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"shop:infer:{KEY}\nboss:admin:{OTHER}\n")
    async with served(predictor, tiny(tmp_path), ApiKeys.read(file)) as running:
        call = running.client.call
        for request in (pb.ServerLiveRequest(), pb.ServerReadyRequest()):
            assert await code_of(call(request)) == "OK"
        assert await running.client.check() == SERVING
        inferring = (
            REQUEST,
            pb.ServerMetadataRequest(),
            pb.ModelReadyRequest(name="ramp"),
            pb.ModelMetadataRequest(name="ramp"),
            pb.ModelConfigRequest(name="ramp"),
            pb.ModelStatisticsRequest(name="ramp"),
        )
        for requests, allowed, denied in (
            (inferring, KEY, OTHER),
            ((pb.RepositoryIndexRequest(),), OTHER, KEY),
        ):
            for request in requests:
                assert await code_of(call(request)) == "UNAUTHENTICATED"
                assert await code_of(call(request, bearer("an-unknown-key-0000"))) == "UNAUTHENTICATED"
                assert await code_of(call(request, bearer(denied))) == "PERMISSION_DENIED"
                assert await code_of(call(request, bearer(allowed))) == "OK"
                twice = [*bearer(allowed), *bearer(allowed)]
                assert await code_of(call(request, twice)) == "UNAUTHENTICATED"
        refused = call(REQUEST)
        assert dict(await refused.trailing_metadata())["www-authenticate"] == "Bearer"
        assert running.calls["ModelInfer", "", "401"] == 4


async def test_a_key_is_asked_for_before_the_message_is_read(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    async with served(predictor, tiny(tmp_path), ApiKeys.read(file)) as running, asyncio.timeout(10):
        call = running.client.channel.stream_unary(MODEL_INFER)()  # which sends nothing
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_client_that_sends_no_message_is_answered(rpc: Served) -> None:
    async with asyncio.timeout(10):
        call = rpc.client.channel.stream_unary(MODEL_INFER)()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert rpc.calls == {("ModelInfer", "", "413"): 1.0}


async def test_a_message_that_comes_too_slowly_is_given_up(rpc: Served) -> None:
    async with asyncio.timeout(10):
        call = rpc.client.channel.stream_unary(MODEL_INFER)(metadata=[("inkserve-timeout", "0.05")])
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert rpc.calls == {("ModelInfer", "", "408"): 1.0}
    assert (await rpc.client.call(REQUEST)).model_name == "first-pixel"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_above_the_limit_is_refused(rpc: Served, compression: grpc.Compression) -> None:
    call = rpc.client.channel.unary_unary(MODEL_INFER)
    for size, expected in ((64 * 1024 + 1, "RESOURCE_EXHAUSTED"), (64 * 1024, "INVALID_ARGUMENT")):
        assert await code_of(call(bytes(size), compression=compression)) == expected
    await rpc.counts("ModelInfer", "", "413")


async def test_messages_that_together_exceed_the_buffers_are_refused(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    held, size = Held(predictor), len(REQUEST.SerializeToString())
    bounded = tiny(tmp_path).model_copy(update={"max_buffered_bytes": 2 * size})
    async with served(predictor, bounded) as running:
        calls = [running.client.call(REQUEST) for _ in range(2)]
        await held.holds(2)
        third = running.client.call(REQUEST)
        assert await code_of(third) == "RESOURCE_EXHAUSTED"
        assert dict(await third.trailing_metadata())["inkserve-reason"] == "buffers_full"
        held.let_go()
        assert [await code_of(call) for call in calls] == ["OK", "OK"]
        predictor.submit = held._submit  # type: ignore[method-assign]
        assert await code_of(running.client.call(REQUEST)) == "OK"


async def test_a_cancelled_call_takes_its_rows_out_of_the_queue(
    rpc: Served, predictor: LocalPredictor
) -> None:
    held = Held(predictor)
    call = rpc.client.call(REQUEST)
    async with asyncio.timeout(10):
        await held.holds(1)
    call.cancel()
    await rpc.counts("ModelInfer", "first-pixel", "499")
    assert held.cancelled == 1


async def test_a_client_that_disconnects_takes_its_rows_out_of_the_queue(
    rpc: Served, predictor: LocalPredictor
) -> None:
    held = Held(predictor)
    channel = channel_to(rpc.address)
    call = Client(channel).call(REQUEST)
    async with asyncio.timeout(10):
        await held.holds(1)
    await channel.close(0)
    await rpc.counts("ModelInfer", "first-pixel", "499")
    assert held.cancelled == 1
    assert call.done()


async def test_a_deadline_that_passes_takes_the_rows_out_of_the_queue(
    rpc: Served, predictor: LocalPredictor
) -> None:
    held = Held(predictor)
    started = time.monotonic()
    assert await code_of(rpc.client.call(REQUEST, timeout=0.2)) == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 5
    await rpc.counts("ModelInfer", "first-pixel", "504")
    assert held.cancelled == 1


@pytest.mark.usefixtures("rpc")
async def test_grpcs_tracebacks_of_clients_that_have_left_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They come if a client leaves in the very moment of its response."""
    for error in (grpc.aio.InternalError("execute_batch"), ValueError("another")):
        logging.getLogger("grpc._cython.cygrpc").error("raised in core", exc_info=error)
    assert [record.exc_info and str(record.exc_info[1]) for record in caplog.records] == ["another"]


async def test_a_deadline_that_has_passed_is_told(rpc: Served) -> None:
    request = infer_request(np.stack([image(7)]))
    request.parameters["timeout"].int64_param = 1
    call = rpc.client.call(request)
    assert await code_of(call) == "DEADLINE_EXCEEDED"
    assert "deadline" in await call.details()
    assert rpc.calls == {("ModelInfer", "first-pixel", "504"): 1.0}


async def test_connections_beyond_the_limit_are_closed(predictor: LocalPredictor, tmp_path: Path) -> None:
    bounded = tiny(tmp_path).model_copy(update={"max_connections": 2})
    async with served(predictor, bounded) as running, contextlib.AsyncExitStack() as stack:
        seen = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*running.address.split(":"))
            stack.callback(writer.close)
            async with asyncio.timeout(10):
                seen.append(bool(await reader.read(1)))
        assert seen == [True, True, False]


async def test_other_rpcs_are_unimplemented(rpc: Served) -> None:
    for name in (
        "RepositoryModelUnload",
        "RepositoryModelLoad",
        "SystemSharedMemoryStatus",
        "ModelStreamInfer",
    ):
        call = rpc.client.channel.unary_unary(f"/{SERVICE}/{name}")(b"")
        assert await code_of(call) == "UNIMPLEMENTED"


async def test_health_follows_readiness(rpc: Served, predictor: LocalPredictor) -> None:
    client = rpc.client
    for service in ("", SERVICE):
        assert await client.check(service) == SERVING
    unknown = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    message = HealthCheckRequest(service="nothing").SerializeToString()
    assert await code_of(unknown(message)) == "NOT_FOUND"
    watch = client.channel.unary_stream("/grpc.health.v1.Health/Watch")
    watched, other = watch(b"").__aiter__(), watch(message).__aiter__()
    async with asyncio.timeout(10):
        assert status(await anext(watched)) == SERVING
        assert status(await anext(other)) == HealthCheckResponse.SERVICE_UNKNOWN
        predictor.stop_being_ready()
        assert status(await anext(watched)) == NOT_SERVING
    assert await client.check() == NOT_SERVING
    assert not (await client.call(pb.ServerReadyRequest())).ready
    assert (await client.call(pb.ServerLiveRequest())).live


def status(message: bytes) -> int:
    found: int = HealthCheckResponse.FromString(message).status
    return found


async def test_at_its_end_calls_in_flight_are_answered_and_watches_end(
    rpc: Served, predictor: LocalPredictor
) -> None:
    held = Held(predictor)
    call = rpc.client.call(REQUEST)
    watched = rpc.client.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"").__aiter__()
    async with asyncio.timeout(10):
        await held.holds(1)
        assert status(await anext(watched)) == SERVING
        stopping = asyncio.ensure_future(rpc.server.stop(30))
        with pytest.raises(StopAsyncIteration):
            await anext(watched)
        assert not stopping.done()
        async with channel_to(rpc.address) as channel:
            assert await code_of(Client(channel).call(REQUEST)) == "UNAVAILABLE"
        held.let_go()
        assert await code_of(call) == "OK"
        await stopping


async def test_at_its_end_calls_that_take_too_long_are_cancelled(
    rpc: Served, predictor: LocalPredictor
) -> None:
    held = Held(predictor)
    call = rpc.client.call(REQUEST)
    async with asyncio.timeout(10):
        await held.holds(1)
        await rpc.server.stop(0.1)
        assert await code_of(call) in ("CANCELLED", "UNAVAILABLE")
        while not held.cancelled:  # the client may know it earlier
            await asyncio.sleep(0.005)
    assert held.cancelled == 1


async def test_a_port_that_is_taken_is_named(predictor: LocalPredictor, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InkserveError, match=f"127.0.0.1:{port} cannot be listened on"):
            open_listeners("127.0.0.1", port)
        server = RpcServer(predictor, tiny(tmp_path), Lifecycle(Metrics()), None)
        with pytest.raises(InkserveError, match="cannot be listened on by gRPC"):
            await server.start([_claiming(port)])
        await server.stop(0)


def _claiming(port: int) -> socket.socket:
    """A socket that says that it has this port, as one that has lost it to another process."""

    class Claiming(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", port

    return Claiming()


async def test_two_servers_share_a_port_only_if_both_say_so(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        port = 0
        for _ in range(2):
            server = RpcServer(predictor, tiny(tmp_path), Lifecycle(Metrics()), None, shared=True)
            listeners = open_listeners("127.0.0.1", port, shared=True)
            port = listeners[0].getsockname()[1]
            await server.start(listeners)
            stack.push_async_callback(server.stop, 0)
        with pytest.raises(InkserveError, match="cannot be listened on"):
            open_listeners("127.0.0.1", port)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@contextlib.asynccontextmanager
async def over_tls(
    predictor: LocalPredictor, models: Path, files: tuple[Path, Path], **more: object
) -> AsyncIterator[RpcServer]:
    flags = {"ssl_certfile": files[0], "ssl_keyfile": files[1], **more}
    server = RpcServer(predictor, tiny(models).model_copy(update=flags), Lifecycle(Metrics()), None)
    yield server
    await server.stop(0)


async def check_over_tls(
    address: str, authority: Authority, certificate: tuple[Path, Path] | None = None
) -> bool:
    """Whether a client that trusts an authority is answered. certificate: its own."""
    chain, key = (None, None) if certificate is None else (certificate[0], certificate[1])
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(),
        None if key is None else key.read_bytes(),
        None if chain is None else chain.read_bytes(),
    )
    async with channel_to(address, credentials) as channel:
        try:
            return await Client(channel).check() == SERVING
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
            return False


@pytest.mark.parametrize("client_auth", ["off", "optional", "required", "required-except-probes"])
async def test_clients_send_certificates_where_they_must(
    predictor: LocalPredictor, tmp_path: Path, folder: Path, client_auth: str
) -> None:
    authority, clients = Authority(folder, "authority"), Authority(folder, "clients")
    own = clients.issue("client")
    asked = client_auth != "off"
    more = {"ssl_client_auth": client_auth, "ssl_ca_certs": clients.file if asked else None}
    async with over_tls(predictor, tmp_path, authority.issue("server"), **more) as server:
        listeners = open_listeners("127.0.0.1", 0)
        address = f"127.0.0.1:{listeners[0].getsockname()[1]}"
        await server.start(listeners)
        assert await check_over_tls(address, authority, own)
        assert await check_over_tls(address, authority) == (client_auth in ("off", "optional"))
        assert not await check_over_tls(address, clients)


async def test_certificates_that_change_are_used_for_new_connections(
    predictor: LocalPredictor, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Authority(folder, "old"), Authority(folder, "new")
    files = old.issue("server")
    async with over_tls(predictor, tmp_path, files) as server:
        listeners = open_listeners("127.0.0.1", 0)
        address = f"127.0.0.1:{listeners[0].getsockname()[1]}"
        await server.start(listeners)
        assert await check_over_tls(address, old)
        good = files[0].read_bytes()
        replace(files[0], b"no certificate")
        assert await check_over_tls(address, old)
        assert "the certificates of gRPC were not reloaded" in caplog.text
        replace(files[0], good)
        for place, renewed in zip(files, new.issue("renewed"), strict=True):
            shutil.move(renewed, place)
        assert await check_over_tls(address, new)
        assert not await check_over_tls(address, old)


def replace(file: Path, content: bytes) -> None:
    """Replace a file at once, as a mounted Secret is."""
    other = file.with_suffix(".new")
    other.write_bytes(content)
    os.replace(other, file)  # noqa: PTH105


async def test_a_certificate_that_cannot_be_used_is_named(
    predictor: LocalPredictor, tmp_path: Path, folder: Path
) -> None:
    broken = folder / "broken.pem"
    broken.write_text("no certificate")
    flags = {"ssl_certfile": broken}
    with pytest.raises(SettingsError, match=r"broken\.pem"):
        RpcServer(predictor, tiny(tmp_path).model_copy(update=flags), Lifecycle(Metrics()), None)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"grpc_port": 8000}, "grpc_port is 8000, expected another one than port"),
        ({"grpc_port": 9000, "agent_port": 9000}, "grpc_port is 9000, expected another one than port"),
        (
            {"grpc_port": 9000, "ssl_certfile": "c", "ssl_keyfile_password_file": "p"},
            "expected a private key without a password, because gRPC reads no other",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_named(flags: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Settings(**flags)  # type: ignore[arg-type]
