"""Verified generation: what a classifier reads in the images, and which are drawn again; and grids."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.content.latents import MAX_SEED, draw_latents
from service.http.app import create_app
from service.http.routes.verification import REDRAWS, redraw_seed
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import OCTETS, settings
from tests.support.models import DIGITS, LATENT

RAW = {"accept": OCTETS}
AS_JSON = {"accept": "application/json"}
SEED = 6
"""Of images that are read as their label now and then: see the assertions."""


class Client(httpx.AsyncClient):
    """A client of a service, and the service's metrics."""

    metrics: Metrics

    async def drawn(self, query: str, **sent: Any) -> np.ndarray:
        response = await self.get(f"/generate?{query}", headers=RAW, **sent)
        assert response.status_code == 200, response.text
        return pixels(response)

    def counted(self, result: str) -> float | None:
        labels = {"model": "ramp", "result": result}
        return self.metrics.registry.get_sample_value("inkserve_generator_agreement_total", labels)


@pytest.fixture
async def client(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Client]:
    metrics = Metrics()
    app = create_app(predictor, settings(tmp_path), metrics)
    async with Client(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        client.metrics = metrics
        yield client


def pixels(response: httpx.Response) -> np.ndarray:
    shape = [int(size) for size in response.headers["inkserve-shape"].split(",")]
    return np.frombuffer(response.content, np.uint8).reshape(shape)


def seen(images: np.ndarray) -> list[str]:
    """What the classifier of the tests reads: the last digit of the first pixel."""
    return [str(pixel % 10) for pixel in images[:, 0, 0]]


async def test_the_answer_tells_what_the_classifier_read(client: Client) -> None:
    plain = await client.drawn(f"seed={SEED}&count=8")
    read = seen(plain)
    agreeing = sum(label == each for label, each in zip(DIGITS, read, strict=False))
    assert 0 < agreeing < 8  # else this test tells nothing
    raw = await client.get(f"/generate?seed={SEED}&count=8&verify=true", headers=RAW)
    assert np.array_equal(pixels(raw), plain)
    assert raw.headers["inkserve-agreement"] == f"{agreeing}/8"
    assert raw.headers["inkserve-read"].split(",") == read
    assert raw.headers["inkserve-classifier"] == "first-pixel"
    answer = (await client.get(f"/generate?seed={SEED}&count=8&verify=first-pixel", headers=AS_JSON)).json()
    assert answer["verification"] == {
        "classifier": "first-pixel",
        "version": 1,
        "agreeing": agreeing,
        "agreement": agreeing / 8,
        "draws": 8,
    }
    assert [(each["label"], each["read"], each["draws"]) for each in answer["images"]] == [
        (label, each, 1) for label, each in zip(DIGITS, read, strict=False)
    ]
    assert (client.counted("agree"), client.counted("disagree")) == (2 * agreeing, 16 - 2 * agreeing)


async def test_without_verification_nothing_is_read(client: Client) -> None:
    for query in (f"seed={SEED}", f"seed={SEED}&verify=false&reject=false"):
        answer = (await client.get(f"/generate?{query}", headers=AS_JSON)).json()
        assert "verification" not in answer
        assert answer["images"][0].keys() == {"label", "digit", "png"}
    assert client.counted("disagree") is None


async def test_misread_images_are_drawn_again_from_seeds_that_follow(client: Client) -> None:
    """Each image is the first of its draws that is read as its label, or the last one."""
    rounds = [
        await client.drawn(f"seed={redraw_seed(SEED, redraw)}&count=8") for redraw in range(REDRAWS + 1)
    ]
    expected, draws = [], []
    for index in range(8):
        hits = [redraw for redraw, images in enumerate(rounds) if seen(images)[index] == DIGITS[index]]
        kept = hits[0] if hits else REDRAWS
        expected.append(rounds[kept][index])
        draws.append(kept + 1)
    assert len({*draws}) > 2  # else this test tells nothing
    raw = await client.get(f"/generate?seed={SEED}&count=8&reject=true", headers=RAW)
    assert np.array_equal(pixels(raw), np.stack(expected))
    assert raw.headers["inkserve-read"].split(",") == seen(np.stack(expected))
    answer = (await client.get(f"/generate?seed={SEED}&count=8&reject=true", headers=AS_JSON)).json()
    assert [each["draws"] for each in answer["images"]] == draws
    assert answer["verification"]["draws"] == sum(draws)
    assert answer["seed"] == SEED
    read = (client.counted("agree") or 0) + (client.counted("disagree") or 0)
    assert read == 2 * sum(draws)


async def test_a_redrawn_image_depends_on_no_other(client: Client) -> None:
    many = await client.get(f"/generate?seed={SEED}&count=8&label=3&reject=true", headers=RAW)
    few = await client.get(f"/generate?seed={SEED}&count=2&label=3&reject=true", headers=RAW)
    assert np.array_equal(pixels(many)[:2], pixels(few))
    assert pixels(many).tobytes() != (await client.drawn(f"seed={SEED}&count=8&label=3")).tobytes()


@pytest.mark.usefixtures("other_tasks")
async def test_images_of_a_prompt_are_verified_and_redrawn_too(client: Client) -> None:
    rounds = [
        await client.drawn(f"prompt=7t&seed={redraw_seed(SEED, redraw)}") for redraw in range(REDRAWS + 1)
    ]
    hits = [redraw for redraw, images in enumerate(rounds) if seen(images) == ["7"]]
    styled = await client.get(f"/generate?prompt=7t&seed={SEED}&reject=true", headers=RAW)
    assert np.array_equal(pixels(styled), rounds[hits[0] if hits else REDRAWS])
    for prompt in ("7", "8"):
        answer = (
            await client.get(f"/generate?prompt={prompt}&seed={SEED}&reject=true", headers=AS_JSON)
        ).json()
        plain = (
            await client.get(f"/generate?label={prompt}&seed={SEED}&reject=true", headers=AS_JSON)
        ).json()
        assert answer["images"] == plain["images"]
        assert answer["understood"]["label"] == prompt


def test_the_seeds_of_redraws_differ_and_stay_in_range() -> None:
    seeds = {redraw_seed(seed, redraw) for seed in (0, 1, 2, MAX_SEED) for redraw in range(REDRAWS + 1)}
    assert len(seeds) == 4 * (REDRAWS + 1)
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert redraw_seed(7, 0) == 7


async def test_sent_latents_are_verified_but_never_replaced(client: Client) -> None:
    z = draw_latents(SEED, 3, LATENT)
    verified = await client.post("/generate", json={"z": z.tolist(), "verify": True}, headers=AS_JSON)
    answer = verified.json()
    assert answer["seed"] is None
    assert [each["read"] for each in answer["images"]] == seen(await client.drawn(f"seed={SEED}&count=3"))
    raw = {"content-type": OCTETS}
    for refused in (
        await client.post("/generate", json={"z": z.tolist(), "reject": True}),
        await client.post("/generate?reject=true", content=z.tobytes(), headers=raw),
    ):
        assert refused.status_code == 400
        assert "reject and latents are both given" in refused.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("verify=another", 400, "another does not know the label 0 of ramp"),
        ("verify=ramp", 400, "model ramp is for generation, expected one for classification"),
        ("verify=none", 404, "model 'none' is unknown"),
        ("reject=1", 400, "reject is '1', expected"),
        ("grid=yes", 400, "grid is 'yes', expected"),
        ("grid=true&prompt=7", 400, "prompt and grid are both given"),
        ("grid=true&count=5", 413, "the grid has 50 images, expected at most 40"),
    ],
)
async def test_a_wrong_wish_says_what_was_seen_and_expected(
    client: Client, query: str, status: int, message: str
) -> None:
    response = await client.get(f"/generate?{query}")
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


async def test_a_grid_has_a_row_for_each_label_and_a_column_for_each_latent(client: Client) -> None:
    grid = (await client.drawn(f"seed={SEED}&count=3&grid=true")).reshape(10, 3, 28, 28)
    for label, row in zip(DIGITS, grid, strict=True):
        assert np.array_equal(row, await client.drawn(f"seed={SEED}&count=3&label={label}"))
    sheet = await client.get(f"/generate?seed={SEED}&count=3&grid=true")
    shown = np.asarray(Image.open(io.BytesIO(sheet.content)))
    assert np.array_equal(shown, grid.swapaxes(1, 2).reshape(10 * 28, 3 * 28))
    one = await client.get(f"/generate?seed={SEED}&count=3&grid=true&label=4")
    assert Image.open(io.BytesIO(one.content)).size == (3 * 28, 28)
    z = draw_latents(SEED, 3, LATENT)
    sent = await client.post("/generate", json={"z": z.tolist(), "grid": True}, headers=RAW)
    assert np.array_equal(pixels(sent).reshape(grid.shape), grid)
    verified = (await client.get(f"/generate?seed={SEED}&grid=true&verify=true", headers=AS_JSON)).json()
    assert [each["label"] for each in verified["images"]] == [*DIGITS]
