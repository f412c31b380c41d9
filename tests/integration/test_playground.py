"""The playground in a real browser, over the real service: what a visitor draws, generates and links to.

A test fails if the browser complains: of an error in a script, a violation of the page's policy, a request to
another host.
"""

import base64
import itertools
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect, sync_playwright

from service.content.latents import draw_latents
from tests.support.live import ROOT, Service, serving

CHROMIUM = shutil.which("chromium")
KEY = "a-key-for-the-playground-0123"
SEVEN = ((0.30, 0.24), (0.68, 0.22), (0.47, 0.80))
"""The corners of a seven, as fractions of the drawing area."""

VIEWS = ("draw", "generate", "explore", "models")
SMALL = ("--max-batch-size", "16")
"""Fewer batch sizes to warm up: an early start."""

PATIENCE_MS = 30_000
"""How long the page may take to show something: a busy machine needs seconds for what takes milliseconds."""

PHOTO = ROOT / "tests" / "digits" / "seven.jpg"
NOT_A_DIGIT = re.compile(r"Failed to load resource: .* 400 ")
"""What Chromium logs while a drawing is no digit yet."""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="chromium is missing: `apt-get install chromium`"
)


def models_in(folder: Path, *names: str) -> Path:
    """Fill a folder with some of the shipped models."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(ROOT / "models" / name)
    return folder


def add_second_version(folder: Path, name: str) -> None:
    """Give a model a second version: the same graph again."""
    (folder / name).unlink()
    for version in ("1", "2"):
        shutil.copytree(ROOT / "models" / name / "1", folder / name / version)
    path = folder / name / "2" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = models_in(
        tmp_path_factory.mktemp("playground") / "models", "cnn", "cnn-gradient", "mlp-int8", "gan", "vae"
    )
    add_second_version(folder, "mlp-int8")
    with serving("--models-dir", str(folder), "--serve-versions", "all", *SMALL) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-sync"])
        yield browser
        browser.close()


class Visitor:
    """Somebody with the playground in a browser.

    complaints: what the browser complains about. expected: the complaints that a test provokes.
    in_flight: the requests without a response yet to /classify. most_in_flight: at any time.
    """

    def __init__(self, context: BrowserContext, port: int, fragment: str = "") -> None:
        self.origin = f"http://127.0.0.1:{port}/"
        self.complaints: list[str] = []
        self.expected = NOT_A_DIGIT
        self.in_flight = self.most_in_flight = self.classified = 0
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note_request)
        for event in ("requestfinished", "requestfailed"):
            self.page.on(event, self._note_end)
        self.page.goto(self.origin + fragment)

    def _note_console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not self.expected.search(message.text):
            self.complaints.append(message.text)

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self.origin, "data:")):
            self.complaints.append(f"asked {request.url}")
        if "/classify" in request.url:
            self.classified += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _note_end(self, request: Request) -> None:
        if "/classify" in request.url:
            self.in_flight -= 1

    def draw(self, *corners: tuple[float, float]) -> None:
        """Draw a stroke with the mouse through these corners."""
        points = self.on_paper(*corners)
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=15)
        self.page.mouse.up()

    def on_paper(self, *corners: tuple[float, float]) -> list[tuple[float, float]]:
        box = self.page.locator("#ink").bounding_box()
        assert box is not None
        return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]

    def reads(self, digit: str) -> None:
        """Wait until the page shows that the drawing or picture is this digit."""
        expect(self.page.locator("#digit")).to_have_text(digit)
        expect(self.page.locator("#verdict")).not_to_have_attribute("aria-busy", "true")  # the last request
        expect(self.page.locator(".bars .best .label")).to_have_text(digit)

    def link(self, *parts: str) -> str:
        """Wait until the address has these parts; returns its fragment."""
        self.page.wait_for_url(lambda url: all(part in url for part in parts))
        return "#" + self.page.url.partition("#")[2]

    def go(self, view: str) -> None:
        """Follow the link to a view and wait until it shows what it has."""
        self.page.locator(f'nav a[href="#{view}"]').click()
        full = {
            "draw": "#seen[src]",
            "generate": "#gallery li:nth-child(16) img",
            "explore": '#strip canvas, #point[width="28"]',
            "models": "#model-detail h2",
        }
        expect(self.page.locator(f"#view-{view}").locator(full[view]).first).to_be_visible()

    def probabilities(self) -> list[str]:
        return self.page.locator(".bars .value").all_inner_texts()

    def sources(self, selector: str) -> list[str]:
        return [each.get_attribute("src") or "" for each in self.page.locator(selector).all()]


Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def desk(browser: Browser) -> BrowserContext:
    """A browser profile whose cache serves all tests. Each visit is a tab, which shares nothing else."""
    return browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")


@pytest.fixture
def visit(service: Service, browser: Browser, desk: BrowserContext) -> Iterator[Visit]:
    """Open the playground in a new tab; with options, of a profile of its own."""
    visitors: list[Visitor] = []

    def open_page(fragment: str = "", *, port: int | None = None, **options: Any) -> Visitor:
        context = browser.new_context(**options) if options else desk
        visitors.append(Visitor(context, port or service.port, fragment))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.page.close()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []


def test_a_seven_is_read_while_it_is_drawn(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    expect(page.locator("#invitation")).to_be_visible()
    visitor.draw(*SEVEN)
    visitor.reads("7")
    assert visitor.classified >= 3
    assert visitor.most_in_flight == 1
    size = page.locator("#seen").evaluate(
        "img => img.decode().then(() => [img.naturalWidth, img.naturalHeight])"
    )
    assert size == [28, 28]
    names = page.locator("#draw-timing dt").all_inner_texts()
    assert names == ["Round trip", "In the queue", "On the device", "Batch"]
    assert page.locator("#draw-timing dd").last.inner_text() == "1 image"
    expect(page.locator("#announce")).to_have_text(re.compile(r"^7, .* sure, by cnn version 1$"))
    page.locator("#clear").click()
    expect(page.locator("#invitation")).to_be_visible()
    expect(page.locator("#answer")).to_have_text("Waiting for your digit")


@pytest.mark.parametrize("fragment", ["#draw", "#generate", "#explore", "#models"])
def test_no_list_is_empty_before_anything_was_done(fragment: str, visit: Visit) -> None:
    page = visit(fragment).page
    page.wait_for_load_state("networkidle")
    for select in page.locator("select:visible").all():
        expect(select.locator("option")).not_to_have_count(0)


def test_an_explanation_is_shown_over_the_picture_and_told(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    button, heat, why = page.locator("#explain"), page.locator("#heat"), page.locator("#why")
    expect(button).to_be_disabled()
    visitor.draw(*SEVEN)
    visitor.reads("7")
    button.focus()
    page.keyboard.press("Enter")
    expect(why).to_have_text(re.compile(r"^Red speaks for 7, most in the .*170 rows in \d+ ms\.$"))
    expect(heat).to_be_visible()
    expect(heat).to_have_attribute("alt", re.compile("^Heat map of Occlusion. Red speaks for 7"))
    expect(page.locator("#announce")).to_have_text(re.compile("^Red speaks for 7"))
    expect(button).to_have_attribute("aria-pressed", "true")
    first = heat.get_attribute("src")
    page.locator("#explain-method").select_option("integrated_gradients")
    expect(why).to_have_text(re.compile(r"65 rows in \d+ ms\.$"))
    assert heat.get_attribute("src") != first
    button.press("Space")
    expect(heat).to_be_hidden()
    expect(why).to_have_text("")
    button.click()
    expect(heat).to_be_visible()
    page.locator("#undo").click()  # what is explained is gone
    expect(heat).to_be_hidden()
    expect(button).to_be_disabled()
    visitor.draw(*SEVEN)
    visitor.reads("7")
    page.locator("#draw-model").select_option("mlp-int8")
    visitor.reads("7")
    expect(page.locator("#explain-method option")).to_have_text(["Occlusion", "LIME"])


def test_a_link_to_a_drawing_shows_it_to_somebody_else(visit: Visit) -> None:
    first = visit("#draw?model=mlp-int8&version=1")
    first.draw(*SEVEN)
    first.reads("7")
    link = first.link("ink=", "model=mlp-int8", "version=1")
    before = first.probabilities(), first.sources("#seen")
    second = visit(link)
    second.reads("7")
    assert (second.probabilities(), second.sources("#seen")) == before
    assert second.page.locator("#draw-model").input_value() == "mlp-int8"
    assert second.page.locator("#draw-version").input_value() == "1"


BRINGING = {
    "paste": """([bytes, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(bytes)], "photo", { type }));
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    }""",
    "drop": """([bytes, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(bytes)], "photo", { type }));
        const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent("dragover", options));
        document.body.dispatchEvent(new DragEvent("drop", options));
    }""",
}


@pytest.mark.parametrize("way", ["paste", "drop", "open"])
def test_a_photo_is_read(visit: Visit, way: str) -> None:
    visitor = visit("#generate" if way == "paste" else "")
    if way == "open":
        visitor.page.locator("#file").set_input_files(PHOTO)
    else:
        expect(visitor.page.locator(".view:visible h1")).to_have_count(1)
        visitor.page.evaluate(BRINGING[way], [list(PHOTO.read_bytes()), "image/jpeg"])
    visitor.reads("7")
    before = visitor.probabilities(), visitor.sources("#seen")
    if way == "open":
        another = visit(visitor.link("png="))
        another.reads("7")
        assert (another.probabilities(), another.sources("#seen")) == before


def test_a_letter_gets_no_bold_digit(visit: Visit, tmp_path: Path) -> None:
    letter = Image.new("L", (240, 240), 255)
    font = ImageFont.load_default(size=150)
    ImageDraw.Draw(letter).text((120, 120), "M", 0, font, anchor="mm", stroke_width=4)
    letter.save(tmp_path / "letter.png")
    page = visit().page
    page.locator("#file").set_input_files(tmp_path / "letter.png")
    expect(page.locator("#answer")).to_have_text("Not sure")
    expect(page.locator("#digit")).to_have_text("?")
    expect(page.locator("#verdict")).to_have_attribute("data-state", "unsure")
    expect(page.locator("#draw-message")).to_have_text(
        re.compile("^This does not look like a digit. The nearest is")
    )
    expect(page.locator("#announce")).to_have_text(re.compile(r"^Not sure: .* by cnn version 1$"))


def test_a_picture_that_comes_before_the_models_are_known_is_read_once(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = re.compile("nothing")
    held: list[Route] = []
    visitor.page.route(re.compile(r"/models(\?|$)"), lambda route: held.append(route))
    visitor.page.reload(wait_until="domcontentloaded")
    before = visitor.classified
    visitor.page.locator("#file").set_input_files(PHOTO)
    visitor.page.wait_for_timeout(300)
    assert (len(held), visitor.classified) == (1, before)
    held[0].continue_()
    visitor.reads("7")
    assert visitor.classified == before + 1


def test_what_is_no_picture_is_refused_in_words(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = re.compile(r"Failed to load resource: .* 415 ")
    visitor.page.evaluate(BRINGING["drop"], [list(b"<svg/>"), "image/svg+xml"])
    message = visitor.page.locator("#draw-message")
    expect(message).to_have_text(re.compile("^Not a picture that the service can read: .*svg"))


def test_a_busy_service_is_asked_again(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = re.compile(r"Failed to load resource: .* (400|429) ")
    busy = {"status": 429, "headers": {"retry-after": "1"}, "json": {"error": "the queue is full"}}
    visitor.page.route("**/classify*", lambda route: route.fulfill(**busy), times=1)
    visitor.page.locator("#file").set_input_files(PHOTO)
    expect(visitor.page.locator("#draw-message")).to_have_text("The service is busy: the queue is full.")
    visitor.reads("7")


def generated(service: Service, query: str) -> list[str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/generate?{query}", headers={"Accept": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return [image["png"] for image in json.load(response)["images"]]


def test_sevens_are_generated_and_their_link_gives_the_same(visit: Visit, service: Service) -> None:
    visitor = visit("#generate?seed=5")
    page = visitor.page
    page.get_by_label("7", exact=True).check()
    expect(page.locator("#gallery img")).to_have_count(16)
    expect(page.locator("#generate-message")).to_have_text(
        "16 images of the digit 7, seed 5, by gan version 1"
    )
    pictures = visitor.sources("#gallery img")
    same = generated(service, "model=gan&label=7&seed=5&count=16")
    assert pictures == [f"data:image/png;base64,{each}" for each in same]
    link = visitor.link("label=7", "seed=5", "count=16")
    page.locator("#generate-dice").click()
    expect(page.locator("#generate-message")).not_to_have_text(re.compile("seed 5,"))
    assert visitor.sources("#gallery img") != pictures

    another = visit(link)
    expect(another.page.locator("#gallery img")).to_have_count(16)
    assert another.sources("#gallery img") == pictures
    another.page.locator("#gallery a").nth(1).click()  # a classifier reads it
    another.reads("7")


def test_the_path_between_two_seeds_starts_and_ends_at_their_images(visit: Visit, service: Service) -> None:
    visitor = visit("#explore?label=3&from=11&to=12&steps=5")
    visitor.expected = re.compile("willReadFrequently")  # this test reads the canvases
    page = visitor.page
    expect(page.locator("#strip canvas")).to_have_count(5)
    pixels = """(canvas, png) => new Promise((resolve) => {
        const image = new Image();
        image.onload = () => {
          const other = new OffscreenCanvas(image.width, image.height).getContext("2d");
          other.drawImage(image, 0, 0);
          const size = [0, 0, image.width, image.height];
          const [a, b] = [canvas.getContext("2d"), other].map((each) => each.getImageData(...size).data);
          resolve(Math.max(...a.map((value, index) => Math.abs(value - b[index]))));
        };
        image.src = `data:image/png;base64,${png}`;
    })"""
    for place, seed in ((0, 11), (4, 12)):
        (png,) = generated(service, f"model=vae&label=3&seed={seed}")
        difference = page.locator("#strip canvas").nth(place).evaluate(pixels, png)
        assert difference <= 1  # the browser's sine may differ in the last bit
    (other,) = generated(service, "model=vae&label=3&seed=12")
    assert page.locator("#strip canvas").first.evaluate(pixels, other) > 100


def test_the_path_between_two_digits_ends_at_the_other_digit(visit: Visit) -> None:
    visitor = visit("#explore?label=3&from=11&to=12&steps=5")
    page = visitor.page
    expect(page.locator("#strip canvas")).to_have_count(5)
    page.locator("#explore-last").select_option("8")
    expect(page.locator("#strip canvas").last).to_have_attribute("aria-label", "8, step 5 of 5")
    expect(page.locator("#strip canvas").first).to_have_attribute("aria-label", "3, step 1 of 5")
    shown = page.locator("#strip canvas").last.evaluate("canvas => canvas.toDataURL()")
    another = visit(visitor.link("last=8", "label=3"))
    expect(another.page.locator("#strip canvas").last).to_have_attribute("aria-label", "8, step 5 of 5")
    assert another.page.locator("#strip canvas").last.evaluate("canvas => canvas.toDataURL()") == shown
    another.page.locator("#explore-model").select_option("gan")
    expect(another.page.locator("#strip canvas").last).to_have_attribute("aria-label", "8, step 5 of 5")


UNTIL = """(canvas, [picture, same]) => new Promise((resolve) => {
    const look = () =>
      (canvas.toDataURL() === picture) === same ? resolve(true) : requestAnimationFrame(look);
    look();
})"""


def test_a_point_of_the_pad_is_in_the_link(visit: Visit) -> None:
    visitor = visit("#explore?label=8")
    page = visitor.page
    expect(page.locator("#map")).to_have_attribute("width", str(9 * 28))
    expect(page.locator("#point")).to_have_attribute("width", "28")
    before = page.locator("#point").evaluate("canvas => canvas.toDataURL()")
    box = page.locator("#pad").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    page.locator("#point").evaluate(UNTIL, [before, False])
    link = visitor.link("x=2.4", "y=2.4", "label=8", "dx=")
    shown = page.locator("#point").evaluate("canvas => canvas.toDataURL()")
    another = visit(link)
    another.page.locator("#point").evaluate(UNTIL, [shown, True])
    another.page.locator("#explore-x").press("ArrowRight")
    assert "2.5" in another.page.locator("#x-text").inner_text()


def test_the_page_draws_the_same_latents_as_the_service(visit: Visit) -> None:
    visitor = visit()
    for seed, size in ((0, 1), (7, 100), (2**53 - 1, 33)):
        drawn = visitor.page.evaluate(
            "([seed, size]) => import('/playground/latent.js').then((m) => [...m.drawLatents(seed, size)])",
            [seed, size],
        )
        np.testing.assert_allclose(drawn, draw_latents(seed, 1, size)[0], rtol=1e-6, atol=1e-7)


def test_every_model_shows_its_versions_and_metrics(visit: Visit) -> None:
    visitor = visit("#models?name=mlp-int8&version=1")
    page = visitor.page
    detail = page.locator("#model-detail")
    expect(detail.locator("h2")).to_have_text("mlp-int8")
    names = page.locator("#model-list strong").all_inner_texts()
    assert names == ["cnn", "cnn-gradient", "gan", "mlp-int8", "vae"]
    expect(detail).to_contain_text("test accuracy\n0.9965", use_inner_text=True, ignore_case=True)
    detail.locator(".layers summary").click()
    expect(detail.locator(".layers caption")).to_contain_text("25 layers, 3,8")
    expect(detail.locator(".layers tbody tr")).to_have_count(25)
    expect(detail.locator(".layers tbody tr").nth(7)).to_contain_text("n x 2048")
    detail.get_by_role("link", name="2", exact=True).click()
    expect(detail.locator("strong")).to_have_text("2")
    detail.get_by_role("link", name="Try it").click()
    expect(page.locator("#draw-model")).to_have_value("mlp-int8")
    expect(page.locator("#draw-about")).to_contain_text("99.65 % of the test images right")


def test_a_phone_has_room_for_everything_and_draws_by_touch(visit: Visit) -> None:
    phone = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
    visitor = visit(**phone, device_scale_factor=2)
    page = visitor.page
    points = [{"x": x, "y": y} for x, y in visitor.on_paper(*SEVEN)]
    touch = page.context.new_cdp_session(page)
    (first, *others) = points
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [first]})
    for other in others:
        for step in range(1, 11):
            point = {axis: first[axis] + (other[axis] - first[axis]) * step / 10 for axis in ("x", "y")}
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
        first = other
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visitor.reads("7")
    for view in VIEWS:
        visitor.go(view)
        assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0, view


def test_a_view_does_not_take_the_address_back_from_the_next_one(visit: Visit) -> None:
    """Its delayed write comes between a click on a link and the event that opens the other view."""
    page = visit().page
    click_then_write = """([shown, view]) => import('/playground/page.js').then((m) => {
        m.setLink(shown, {});
        location.hash = '#' + view;
        m.writeLink();
        return location.hash;
    })"""
    for shown, view in itertools.permutations(VIEWS, 2):
        page.locator(f'nav a[href="#{shown}"]').click()
        expect(page.locator(f"#view-{shown}")).to_be_visible()
        assert page.evaluate(click_then_write, [shown, view]) == f"#{view}", shown
        expect(page.locator(f"#view-{view}")).to_be_visible()


def test_back_returns_to_what_a_view_showed_when_it_was_left(visit: Visit) -> None:
    """However soon after its last change: the address is written a moment later."""
    page = visit().page
    change = "(view) => import('/playground/page.js').then((m) => m.setLink(view, { last: 1 }))"
    back = """() => new Promise((resolve) => {
        addEventListener("hashchange", () => resolve(location.hash), { once: true });
        history.back();
    })"""
    for shown, view in itertools.permutations(VIEWS, 2):
        page.locator(f'nav a[href="#{shown}"]').click()
        expect(page.locator(f"#view-{shown}")).to_be_visible()
        leave = f"document.querySelector('nav a[href=\"#{view}\"]').click()"
        page.evaluate(f"(view) => ({change})(view).then(() => {leave})", shown)
        expect(page.locator(f"#view-{view}")).to_be_visible()
        assert page.evaluate(back) == f"#{shown}?last=1", view


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    def press(key: str, times: int = 1) -> None:
        for _ in range(times):
            page.keyboard.press(key)

    tab_to("#ink")
    press("ArrowUp", 6)
    press("ArrowLeft", 4)
    press("Space")
    press("ArrowRight", 8)
    for _ in range(6):  # a slanted stroke
        press("ArrowDown", 2)
        press("ArrowLeft")
    press("Space")
    visitor.reads("7")
    tab_to("#draw-model")
    page.keyboard.type("mlp")
    visitor.link("model=mlp-int8")
    page.keyboard.press("Escape")
    page.locator("#ink").focus()
    press("Escape")
    expect(page.locator("#invitation")).to_be_visible()
    page.locator(".skip").focus()
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator('nav a[href="#generate"]').focus()
    press("Enter")
    tab_to('input[name="generate-labels"]')
    press("ArrowLeft")
    expect(page.locator("#generate-message")).to_contain_text("of the digit 9")


def test_axe_finds_no_serious_fault(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    visitor.draw(*SEVEN)
    visitor.reads("7")
    found = []
    for view in VIEWS:
        visitor.go(view)
        for scheme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            faults = Axe().run(page, options={"resultTypes": ["violations"]} | options).response["violations"]
            for fault in faults:
                places = [node["html"][:120] for node in fault["nodes"]]
                found.append((view, scheme, fault["impact"], fault["id"], places))
    assert [each for each in found if each[2] in ("serious", "critical")] == []


def test_the_policy_stops_inline_script_and_markup(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = re.compile("Content Security Policy|TrustedHTML|TrustedScript")
    run = """() => {
        const refused = (act) => { try { act(); return false; } catch { return true; } };
        const script = document.createElement("script");
        const image = document.createElement("img");
        document.body.append(script, image);
        return [
          refused(() => { document.body.innerHTML = "<p>"; }),
          refused(() => { script.textContent = "window.injected = 1"; }),
          refused(() => { image.setAttribute("onerror", "window.injected = 2"); image.src = "data:,"; }),
          window.injected ?? null,
        ];
    }"""
    refused = visitor.page.evaluate(run)
    assert refused == [True, True, True, None]


def test_a_picture_is_drawn_for_a_classifier_of_pictures(visit: Visit, tmp_path: Path) -> None:
    """A classifier of anything else may be the service's default, and cannot be chosen."""
    folder = models_in(tmp_path / "models", "cnn")
    table = folder / "a-table" / "1"
    shutil.copytree(ROOT / "models" / "mlp-int8" / "1", table)
    manifest = json.loads((table / "manifest.json").read_text())
    manifest |= {"name": "a-table", "preprocess": "none", "default": True}
    (table / "manifest.json").write_text(json.dumps(manifest))
    with serving("--models-dir", str(folder), *SMALL) as service:
        visitor = visit(port=service.port)
        visitor.draw(*SEVEN)
        visitor.reads("7")
        assert visitor.page.locator("#draw-model option").all_text_contents() == ["cnn"]


def test_with_api_keys_the_page_asks_for_one_and_keeps_it_in_the_tab(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    folder = models_in(tmp_path / "models", "cnn")
    flags = ["--models-dir", str(folder), "--api-keys-file", str(tmp_path / "keys"), "--workers", "1", *SMALL]
    with serving(*flags) as service:
        visitor = visit(port=service.port)
        visitor.expected = re.compile(r"Failed to load resource: .* (400|401) ")
        page = visitor.page
        dialog = page.locator("#key-dialog")
        expect(page.locator("#key-reason")).to_have_text("This service asks for an API key.")
        page.locator("#key-input").fill("a-wrong-key-0123456789")
        page.keyboard.press("Enter")
        expect(page.locator("#key-reason")).to_have_text("The service does not know this API key.")
        page.locator("#key-input").fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        visitor.draw(*SEVEN)
        visitor.reads("7")
        visitor.link("ink=")
        assert KEY not in page.url
        stored = page.evaluate(
            "[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]"
        )
        assert [KEY in each for each in stored] == [True, False, False]
        page.reload()
        visitor.reads("7")
        page.locator("#key-button").click()
        page.locator("#key-forget").click()
        expect(page.locator("#key-reason")).to_have_text("This service asks for an API key.")
        assert page.evaluate("sessionStorage.length") == 0


def test_a_photo_in_a_link_is_the_picture_that_the_model_saw(visit: Visit) -> None:
    """A link made by hand: MNIST's own seven goes through as it is, bit for bit."""
    png = (ROOT / "tests" / "digits" / "7.png").read_bytes()
    text = base64.urlsafe_b64encode(png).decode().rstrip("=")
    visitor = visit(f"#draw?png={text}")
    visitor.reads("7")
