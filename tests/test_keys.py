"""API keys before the real service: who is let in, on which routes, and when the file changes."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live import RAW, Response, Service, connected, serving

KEY, NEXT = "a-key-of-the-test-0123", "the-next-key-of-it-456"
OPEN = ["/", "/docs", "/openapi.json", "/metrics", "/v2/health/live", "/v2/health/ready"]
CLOSED = ["/models", "/models/first-pixel", "/generate", "/nothing"]
IMAGE = bytes(784)


async def classify(service: Service, key: str | None, *, chunked: bool = False) -> Response:
    headers = RAW if key is None else RAW | {"authorization": f"Bearer {key}"}
    async with connected(service.port) as connection:
        if not chunked:
            return await connection.ask("POST", "/classify", IMAGE, headers)
        lines = ["POST /classify HTTP/1.1", "host: test", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        connection.writer.write(head + b"310\r\n" + IMAGE + b"\r\n0\r\n\r\n")
        return await connection.receive()


def refused(response: Response) -> bool:
    if response.status == 200:
        return False
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "expected Authorization: Bearer <key>" in json.loads(response.body)["error"]
    return True


@pytest.mark.parametrize("form", [[], ["--workers", "1"]], ids=["one process", "split"])
async def test_keys_are_asked_for_and_follow_their_file(
    add_classifier: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    form: list[str],
) -> None:
    add_classifier()
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# ours\n{KEY}\n")
    with serving("--models-dir", str(tmp_path), "--api-keys-file", str(keys), *form) as service:
        for chunked in (False, True):  # in the protocol and through ASGI
            assert refused(await classify(service, None, chunked=chunked))
            assert refused(await classify(service, NEXT, chunked=chunked))
            assert not refused(await classify(service, KEY, chunked=chunked))
        async with connected(service.port) as connection:
            for path in OPEN:
                assert (await connection.ask("GET", path)).status in (200, 307), path
            for path in CLOSED:
                assert refused(await connection.ask("GET", path)), path
            assert (
                await connection.ask("GET", "/models", headers={"authorization": f"Bearer {KEY}"})
            ).status == 200
            metrics = (await connection.ask("GET", "/metrics")).body.decode()
            assert 'inkserve_requests_total{model="",route="/classify",status="401"} 4.0' in metrics
            assert 'route="other",status="401"' in metrics
            assert "/nothing" not in metrics
            document = json.loads((await connection.ask("GET", "/openapi.json")).body)
            assert document["security"] == [{"key": []}]
        keys.write_text(f"{NEXT}\n")
        until = time.monotonic() + 30
        while refused(await classify(service, NEXT)):
            assert time.monotonic() < until
            await asyncio.sleep(0.2)
        assert refused(await classify(service, KEY))
        assert refused(await classify(service, KEY, chunked=True))


@pytest.mark.parametrize("form", [[], ["--workers", "1"]], ids=["one process", "split"])
def test_a_file_without_keys_stops_the_start(
    add_classifier: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    form: list[str],
) -> None:
    add_classifier()
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# none\n")
    with (
        pytest.raises(pytest.fail.Exception, match="holds no API key"),
        serving("--models-dir", str(tmp_path), "--api-keys-file", str(keys), *form),
    ):
        pass
