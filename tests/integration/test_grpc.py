"""gRPC before the real service: beside HTTP, in both forms, until its end."""

import asyncio
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from service import compose
from service.__main__ import main
from service.grpc import open_inference_pb2 as pb
from tests.support.http import RAW, image
from tests.support.live import RAW as RAW_ROWS
from tests.support.live import Service, connected, serving
from tests.support.rpc import Client, channel_to, infer_request

FORMS = pytest.mark.parametrize(
    "form", [[], pytest.param(["--workers", "2"], marks=pytest.mark.slow)], ids=["one process", "split"]
)


def address_of(service: Service) -> str:
    found = [re.search(r"gRPC is ready at (\S+)", line) for line in service.lines]
    (address,) = (match[1] for match in found if match)
    return address


@FORMS
async def test_both_protocols_are_answered_and_counted(
    add_classifier: Callable[..., Path], tmp_path: Path, form: list[str]
) -> None:
    add_classifier()
    images = np.stack([image(place) for place in range(10)])
    connections = 16
    with serving("--models-dir", str(tmp_path), "--grpc-port", "0", *form) as service:
        for _ in range(connections):  # the kernel spreads them over the workers
            async with channel_to(address_of(service)) as channel:
                client = Client(channel)
                assert (await client.call(pb.ServerReadyRequest())).ready
                response = await client.call(infer_request(images))
                rows = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(10, 10)
                assert rows.argmax(1).tolist() == list(range(10))
        async with connected(service.port) as connection:
            assert (await connection.ask("POST", "/classify", RAW, RAW_ROWS)).status == 200
            text = (await connection.ask("GET", "/metrics")).body.decode()
        counted = re.findall(r'inkserve_requests_total\{model="first-pixel",route="(.*?)".*?\} (\S+)', text)
        assert dict(counted) == {"/classify": "1.0", "/inference.GRPCInferenceService/ModelInfer": "16.0"}
        assert service.stop() == 0


@FORMS
async def test_a_signal_ends_the_service_after_the_calls_in_flight(
    add_classifier: Callable[..., Path], tmp_path: Path, form: list[str]
) -> None:
    """The service is unready first, and answers until its ports close."""
    add_classifier()
    flags = ["--grpc-port", "0", "--drain-seconds", "1", *form]
    with serving("--models-dir", str(tmp_path), *flags) as service:
        async with channel_to(address_of(service)) as channel:
            client = Client(channel)
            request = infer_request(np.stack([image(7)]))
            await client.call(request)
            service.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                while (await client.call(pb.ServerReadyRequest())).ready:
                    await asyncio.sleep(0.02)
                assert (await client.call(request)).model_name == "first-pixel"
                code = grpc.StatusCode.OK
                while code is grpc.StatusCode.OK:
                    code = await client.call(request).code()
                # gRPC cancels a call that it had received, but not yet handed over.
                assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert await asyncio.to_thread(service.process.wait, 60) == 0


@FORMS
def test_a_taken_port_is_an_error_in_one_line(
    add_classifier: Callable[..., Path], tmp_path: Path, form: list[str]
) -> None:
    add_classifier()
    with serving("--models-dir", str(tmp_path), "--grpc-port", "0", *form) as service:
        address = address_of(service)
        port = address.rpartition(":")[2]
        with (
            pytest.raises(pytest.fail.Exception) as caught,
            serving("--models-dir", str(tmp_path), "--grpc-port", port, *form),
        ):
            pass
    _, *lines = str(caught.value).strip().splitlines()
    assert len([line for line in lines if "ERROR" in line]) == 1, lines
    assert f"{address} cannot be listened on" in lines[-1]


@pytest.mark.parametrize("form", [[], ["--workers", "1"]], ids=["one process", "split"])
def test_without_the_extra_the_start_is_refused(
    add_classifier: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    form: list[str],
) -> None:
    def without_grpc(name: str) -> Any:
        return None if name == "grpc" else find_spec(name)

    add_classifier()
    monkeypatch.setattr(compose, "find_spec", without_grpc)
    monkeypatch.setenv("INKSERVE_MODELS_DIR", str(tmp_path))
    for module, name in (
        (sys, "stderr"),
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # `main` changes them for its whole process
    try:
        assert main(["--port", "0", "--grpc-port", "9000", *form]) == 1
    finally:
        logging.captureWarnings(False)
    assert "grpc_port is 9000, but the extra `grpc` is missing: no module grpc" in capfd.readouterr().err
