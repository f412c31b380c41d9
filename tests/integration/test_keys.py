"""API keys before the real service: who is let in, on which routes, and when the file changes."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.http import exchange, request
from tests.support.live import Response, Service, connected, serving

KEY, NEXT = "a-key-of-the-test-0123", "the-next-key-of-it-456"
OPEN = [
    "/",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
    "/playground/app.js",
]
CLOSED = ["/models", "/models/first-pixel", "/generate", "/nothing"]

Write = Callable[[str], Path]


async def classify(service: Service, key: str | None, *, chunked: bool = False) -> Response:
    header = "" if key is None else f"Authorization: Bearer {key}"
    async with connected(service.port) as connection:
        return await exchange(connection, request(extra=header, chunked=chunked))


@pytest.fixture
def write_keys(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes the file, outside of the models' folder, and tells where it is."""
    path = tmp_path_factory.mktemp("keys") / "keys"

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    return write


def refused(response: Response) -> bool:
    if response.status == 200:
        return False
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "expected Authorization: Bearer <key>" in json.loads(response.body)["error"]
    return True


@pytest.mark.parametrize("form", [[], ["--workers", "1"]], ids=["one process", "split"])
async def test_keys_are_asked_for_and_follow_their_file(
    add_classifier: Callable[..., Path], tmp_path: Path, write_keys: Write, form: list[str]
) -> None:
    add_classifier()
    keys = write_keys(f"# ours\n{KEY}\n")
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
        write_keys(f"{NEXT}\n")
        until = time.monotonic() + 30
        while refused(await classify(service, NEXT)):
            assert time.monotonic() < until
            await asyncio.sleep(0.2)
        assert refused(await classify(service, KEY))
        assert refused(await classify(service, KEY, chunked=True))


@pytest.mark.parametrize("form", [[], ["--workers", "1"]], ids=["one process", "split"])
def test_a_file_without_keys_stops_the_start(
    add_classifier: Callable[..., Path], tmp_path: Path, write_keys: Write, form: list[str]
) -> None:
    add_classifier()
    keys = write_keys("# none\n")
    with (
        pytest.raises(pytest.fail.Exception, match="holds no API key"),
        serving("--models-dir", str(tmp_path), "--api-keys-file", str(keys), *form),
    ):
        pass


async def test_a_known_key_without_the_scope_gets_403_on_both_paths(
    add_classifier: Callable[..., Path], tmp_path: Path, write_keys: Write
) -> None:
    add_classifier()
    keys = write_keys(f"shop:infer:{KEY}\nscraper:metrics:{NEXT}\n")
    with serving("--models-dir", str(tmp_path), "--api-keys-file", str(keys)) as service:
        for chunked in (False, True):
            assert (await classify(service, KEY, chunked=chunked)).status == 200
            denied = await classify(service, NEXT, chunked=chunked)
            assert (denied.status, json.loads(denied.body)["error"]) == (
                403,
                "API key has the scopes metrics, expected infer",
            )
        async with connected(service.port) as connection:
            for key, status in ((None, 401), (KEY, 403), (NEXT, 200)):
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                assert (await connection.ask("GET", "/metrics", headers=headers)).status == status
            assert (await connection.ask("GET", "/v2/health/live")).status == 200
