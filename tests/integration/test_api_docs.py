"""/docs in a real browser that reaches no host but the service: what a reader sees and can try out."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

from tests.support.live import ROOT, Service, serving

CHROMIUM = shutil.which("chromium")
KEY = "a-key-for-the-docs-0123"
OPERATIONS = [
    ("POST", "/classify"),
    ("GET", "/generate"),
    ("POST", "/generate"),
    ("GET", "/search"),
    ("POST", "/search"),
    ("POST", "/encode"),
    ("POST", "/decode"),
    ("POST", "/reconstruct"),
    ("GET", "/interpolate"),
    ("POST", "/explain"),
    ("POST", "/v2/models/{name}/infer"),
    ("POST", "/v2/models/{name}/versions/{version}/infer"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/models"),
    ("GET", "/models/{name}"),
    ("GET", "/models/{name}/graph"),
    ("GET", "/v2"),
    ("GET", "/v2/models/{name}"),
    ("GET", "/v2/models/{name}/config"),
    ("GET", "/v2/models/{name}/stats"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2/models/{name}/ready"),
    ("GET", "/v2/models/{name}/versions/{version}"),
    ("GET", "/v2/models/{name}/versions/{version}/config"),
    ("GET", "/v2/models/{name}/versions/{version}/stats"),
    ("GET", "/v2/models/{name}/versions/{version}/ready"),
    ("POST", "/v2/repository/index"),
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="chromium is missing: `apt-get install chromium`"
)


WITH_KEYS = pytest.param(True, id="with API keys", marks=pytest.mark.nightly)
"""The same operations again, in a minute and a half."""


@pytest.fixture(params=[pytest.param(False, id="open"), WITH_KEYS], scope="module")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service over the shipped models; the second time it asks for an API key."""
    flags = ["--models-dir", str(ROOT / "models")]
    if request.param:
        keys = tmp_path_factory.mktemp("keys") / "keys"
        keys.write_text(KEY)
        flags += ["--api-keys-file", str(keys)]
    with serving(*flags) as service:
        yield service


class Reader:
    """A browser's page at /docs.

    elsewhere: the addresses on other hosts that it asked for. complaints: what its console shows.
    """

    def __init__(self, page: Page, port: int) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        self._origin = f"http://127.0.0.1:{port}/"
        page.route("**/*", self._stay_here)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"{self._origin}docs")
        page.wait_for_selector(".opblock")

    def _stay_here(self, route: Route) -> None:
        if route.request.url.startswith(self._origin):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def operations(self) -> list[tuple[str, str]]:
        """The methods and paths on the page."""
        methods = self.page.locator(".opblock-summary-method").all_inner_texts()
        paths = self.page.locator(".opblock-summary-path")
        names = [each.get_attribute("data-path") or "" for each in paths.all()]
        return list(zip(methods, names, strict=True))

    def authorize(self, key: str) -> None:
        """Enter an API key, as a reader does."""
        self.page.locator("button.authorize").first.click()
        self.page.locator(".auth-container input").fill(key)
        self.page.locator(".auth-btn-wrapper button.authorize").click()
        self.page.locator(".auth-btn-wrapper button.btn-done").click()

    def execute(self, method: str, path: str) -> Locator:
        """Run an operation with the values that the page has filled in; returns its live response."""
        block = self.page.locator(f".opblock-{method.lower()}").filter(
            has=self.page.locator(f'[data-path="{path}"]')
        )
        block.locator(".opblock-summary-control").click()
        block.locator("button.execute").click()
        response = block.locator(".live-responses-table tbody")
        response.wait_for(timeout=60_000)
        return response


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def reader(service: Service, browser: Browser) -> Iterator[Reader]:
    page = browser.new_page(viewport={"width": 1200, "height": 1600})
    yield Reader(page, service.port)
    page.close()


def test_the_page_shows_every_operation_and_asks_no_other_host(reader: Reader) -> None:
    assert sorted(reader.operations()) == sorted(OPERATIONS)
    assert reader.elsewhere == []
    assert reader.complaints == []


def test_trying_out_generate_shows_the_picture(
    reader: Reader, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if request.node.callspec.params["service"]:
        reader.authorize(KEY)
    response = reader.execute("GET", "/generate")
    assert response.locator(".response-col_status").inner_text().strip() == "200"
    picture = response.locator("img")
    picture.wait_for()
    picture.scroll_into_view_if_needed()
    size = picture.evaluate("img => img.decode().then(() => [img.naturalWidth, img.naturalHeight])")
    assert size == [4 * 28, 4 * 28]  # sixteen images
    reader.page.screenshot(path=tmp_path / "generate.png")
    assert reader.elsewhere == []
    assert reader.complaints == []


@pytest.mark.nightly
def test_every_operation_answers_200_to_the_values_filled_in(
    reader: Reader, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["service"]:
        reader.authorize(KEY)
    for method, path in OPERATIONS:
        response = reader.execute(method, path)
        status = response.locator(".response-col_status").inner_text().strip()
        assert status == "200", (method, path, response.inner_text()[:400])
    assert reader.complaints == []
