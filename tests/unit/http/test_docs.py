"""The page /docs and its files, all of them from this service."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.http.api_keys import ApiKeys
from service.http.app import create_app
from service.http.routes import docs
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings


@pytest.fixture
async def client(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(predictor, settings(tmp_path), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_the_page_names_no_other_host_and_runs_no_inline_script(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text
    assert re.findall(r"<script[^>]*>(.*?)</script>", page.text) == ["", ""]
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy


async def test_every_file_of_the_page_is_served(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {Path(each).name for each in named} == {*docs.FILES, "start.js"}
    for each in named:
        file = await client.get(f"/{each}")
        assert file.status_code == 200, each
        assert file.headers["x-content-type-options"] == "nosniff"
        assert len(file.content) > 100


async def test_swagger_ui_is_of_a_version_that_reads_openapi_3_1(client: httpx.AsyncClient) -> None:
    bundle = (await client.get("/docs/swagger-ui-bundle.js")).text
    found = re.search(r'PACKAGE_VERSION:"(\d+)\.(\d+)', bundle)
    assert found is not None
    assert (int(found[1]), int(found[2])) >= (5, 34)


async def test_the_page_needs_no_api_key(predictor: LocalPredictor, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-the-tests-0123")
    keys = ApiKeys.read(tmp_path / "keys")
    app = create_app(predictor, settings(tmp_path), Metrics(), keys=keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/docs", "/docs/start.js", *(f"/docs/{name}" for name in docs.FILES)):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/models")).status_code == 401


@pytest.mark.parametrize("path", ["/docs/__init__.py", "/docs/..%2fmain.py", "/docs/x", "/redoc"])
async def test_other_files_are_not_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404
