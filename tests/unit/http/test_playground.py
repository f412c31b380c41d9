"""GET / and the playground's files, without a browser: who gets what, and with which headers."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import service
from service.http.api_keys import ApiKeys
from service.http.app import create_app
from service.observability.metrics import Metrics, package_version
from service.serving.local import LocalPredictor
from tests.support.http import settings

FOLDER = Path(service.__file__).parent / "playground"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@asynccontextmanager
async def asking(
    predictor: LocalPredictor, folder: Path, keys: ApiKeys | None = None, **changes: Any
) -> AsyncIterator[httpx.AsyncClient]:
    configured = settings(folder).model_copy(update=changes)
    app = create_app(predictor, configured, Metrics(), keys=keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def client(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(predictor, tmp_path) as client:
        yield client


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, "text/html"),
        ("text/html", "text/html"),
        ("*/*, text/html", "text/html"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("text/html;q=0, */*", "application/json"),
    ],
)
async def test_browsers_get_the_page_and_programs_json(
    client: httpx.AsyncClient, accept: str, kind: str
) -> None:
    response = await client.get("/", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == kind
    assert response.headers["vary"] == "Accept"


@pytest.mark.usefixtures("other_tasks")
async def test_a_program_finds_the_version_and_paths_that_exist(client: httpx.AsyncClient) -> None:
    index = (await client.get("/")).json()
    assert (index["name"], index["version"]) == ("inkserve", package_version())
    for path in index["paths"].values():
        # 400: a search without a prompt.
        assert (await client.get(path)).status_code in (200, 400, 405), path


async def test_no_other_type_is_offered(client: httpx.AsyncClient) -> None:
    response = await client.get("/", headers={"accept": "image/png"})
    assert response.status_code == 406
    assert "text/html" in response.json()["error"]


async def test_the_page_and_its_files_name_no_other_host_and_no_inline_code(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/", headers={"accept": BROWSER})).text
    assert "//" not in page
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    assert not re.search(r"<style|\s(style|on\w+)=", page)
    for name in FILES:
        text = (FOLDER / name).read_text()
        assert re.findall(r"https?://[^\"]*", text) in ([], ["http://www.w3.org/2000/svg"]), name


async def test_every_file_that_is_named_is_served_with_the_headers_of_a_careful_page(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/", headers={"accept": BROWSER})
    named = {*re.findall(r'(?:src|href)="\./(playground/[^"]+)"', page.text)}
    scripts = [each for each in FILES if each.endswith(".js")]
    named |= {f"playground/{each}" for name in scripts for each in imports_of(name)}
    assert named == {f"playground/{name}" for name in FILES}
    responses = [page, *[await client.get(f"/{each}") for each in named]]
    for response in responses:
        assert response.status_code == 200, response.url
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy.items() >= POLICY.items()
        assert "unsafe" not in str(policy)


def imports_of(script: str) -> list[str]:
    return re.findall(r'from "\./([^"]+)"', (FOLDER / script).read_text())


async def test_a_file_that_the_browser_has_is_not_sent_again(client: httpx.AsyncClient) -> None:
    for path, accept in (("/", BROWSER), ("/playground/app.js", "*/*")):
        first = await client.get(path, headers={"accept": accept})
        etag = first.headers["etag"]
        assert first.headers["cache-control"] == "no-cache"
        for tags in (etag, f'"other", W/{etag}', "*"):
            again = await client.get(path, headers={"accept": accept, "if-none-match": tags})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        other = await client.get(path, headers={"accept": accept, "if-none-match": '"other"'})
        assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize("path", ["/playground", "/playground/none.js", "/playground/..%2fsettings.py"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_a_prefix_is_in_the_pages_addresses(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with asking(predictor, tmp_path, root_path="/digits") as client:
        page = await client.get("/digits", headers={"accept": BROWSER})
        assert 'src="/digits/playground/app.js"' in page.text
        assert '"./' not in page.text
        index = (await client.get("/digits/")).json()
        assert index["paths"]["documentation"] == "/digits/docs"


async def test_switched_off_there_is_no_page(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with asking(predictor, tmp_path, playground=False) as client:
        for accept in (BROWSER, "*/*"):
            response = await client.get("/", headers={"accept": accept})
            assert (response.status_code, response.headers["location"]) == (307, "docs")
        assert (await client.get("/playground/app.js")).status_code == 404


async def test_the_page_needs_no_api_key_and_what_it_asks_for_does(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("a-key-of-the-tests-0123")
    async with asking(predictor, tmp_path, keys=ApiKeys.read(tmp_path / "keys")) as client:
        for path in ("/", *(f"/playground/{name}" for name in FILES)):
            assert (await client.get(path, headers={"accept": BROWSER})).status_code == 200, path
        for path in ("/models", "/generate", "/playground"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/classify")).status_code == 401
