"""Search by text, captions of images, and generation from a prompt."""

import base64
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.content.prompts import CANDIDATES
from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import OCTETS, image, png, settings
from tests.support.text_models import FOUND, LENGTH, add_captioner, add_search

RAW = {"accept": OCTETS}
AS_JSON = {"accept": "application/json"}
MOST = 3 * CANDIDATES


@pytest.fixture
async def client(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    add_classifier()
    add_generator()
    add_search(tmp_path)
    add_captioner(tmp_path)
    limits = settings(tmp_path).model_copy(update={"max_request_rows": MOST})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    app = create_app(predictor, limits, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
    await predictor.close()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


async def test_a_prompt_finds_images_and_says_what_was_understood(client: httpx.AsyncClient) -> None:
    response = await client.get("/search?prompt=7t&count=2")
    answer = response.json()
    assert response.status_code == 200
    assert (answer["model"], answer["version"]) == ("text", 1)
    understood = answer["understood"]
    assert understood.pop("certainty") == pytest.approx(0.98)
    assert understood == {"label": "7", "stroke": "thin", "slant": None, "size": None}
    assert [each["index"] for each in answer["images"]] == [50, 51]
    assert [each["label"] for each in answer["images"]] == ["7", "7"]
    assert [round(each["score"], 3) for each in answer["images"]] == [0.9, 0.8]
    assert [pixels(base64.b64decode(each["png"]))[14, 14] for each in answer["images"]] == [50, 51]
    assert response.headers["inkserve-understood"] == "thin, 7"


async def test_found_images_come_as_one_png_too(client: httpx.AsyncClient) -> None:
    response = await client.get("/search?prompt=dk", headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert response.headers["inkserve-understood"] == "thick"
    sheet = pixels(response.content)
    assert sheet[sheet > 0].tolist() == [1, 2]  # those of the images 1 and 2; image 0 is black


async def test_images_are_described(client: httpx.AsyncClient) -> None:
    body = np.stack([image(3), image(18)]).tobytes()
    answer = (await client.post("/search?top_k=2", content=body, headers={"content-type": OCTETS})).json()
    assert [each["label"] for each in answer["images"]] == ["3", "8"]
    first, second = answer["images"]
    assert {name: first[name] for name in ("stroke", "slant", "size")} == {
        "stroke": "thin",
        "slant": "slanted",
        "size": None,
    }
    captions = [(each["caption"], each["probability"]) for each in first["captions"]]
    assert captions == [
        ("a thin slanted 3", pytest.approx(0.7 * 0.7 * 0.6)),
        ("a thin slanted small 3", pytest.approx(0.7 * 0.7 * 0.2)),
    ]
    assert second["captions"][0]["caption"] == "a thin slanted 8"
    picture = await client.post("/search", content=png(4), headers={"content-type": "image/png"})
    assert picture.json()["images"][0]["label"] == "4"
    assert len(picture.json()["images"][0]["captions"]) == 3


async def test_a_prompt_without_a_style_draws_what_its_label_would(client: httpx.AsyncClient) -> None:
    named = await client.get("/generate?label=7&seed=5&count=3", headers=RAW)
    prompted = await client.get("/generate?prompt=7&seed=5&count=3", headers=RAW)
    assert prompted.content == named.content
    assert prompted.headers["inkserve-understood"] == "7"
    assert "inkserve-understood" not in named.headers


async def test_a_prompt_with_a_style_keeps_the_nearest_of_several(client: httpx.AsyncClient) -> None:
    drawn = await client.get(f"/generate?label=7&seed=5&count={2 * CANDIDATES}", headers=RAW)
    every = np.frombuffer(drawn.content, np.uint8).reshape(2, CANDIDATES, 28, 28)
    brightest = [group[group.reshape(CANDIDATES, -1).mean(1).argmax()] for group in every]
    kept = await client.get("/generate?prompt=7t&seed=5&count=2", headers=RAW)
    assert kept.headers["inkserve-shape"] == "2,28,28"
    assert np.array_equal(np.frombuffer(kept.content, np.uint8).reshape(2, 28, 28), np.stack(brightest))


async def test_an_image_of_a_prompt_depends_on_the_seed_and_its_number_alone(
    client: httpx.AsyncClient,
) -> None:
    many = (await client.get("/generate?prompt=7t&seed=5&count=3", headers=RAW)).content
    few = (await client.get("/generate?prompt=7t&seed=5&count=1", headers=RAW)).content
    assert many.startswith(few)
    assert (await client.get("/generate?prompt=7t&seed=6&count=1", headers=RAW)).content != few


async def test_a_generated_answer_says_what_was_understood(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/generate", json={"prompt": "7k", "seed": 1}, headers=AS_JSON)).json()
    assert answer["understood"]["label"] == "7"
    assert answer["understood"]["stroke"] == "thick"
    assert [each["label"] for each in answer["images"]] == ["7"]
    plain = (await client.get("/generate?label=7&seed=1", headers=AS_JSON)).json()
    assert "understood" not in plain


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        (
            "prompt=red+cat",
            400,
            "prompt is 'red cat', which text does not understand (0.02 of at least 0.5)",
        ),
        (
            "prompt=cat",
            400,
            "expected one digit, as a word or a numeral, and its style (thin or thick, upright",
        ),
        ("prompt=", 400, "prompt is empty, expected one digit"),
        ("prompt=+%20", 400, "prompt is empty"),
        ("prompt=" + "7" * (LENGTH + 1), 400, f"prompt has {LENGTH + 1} bytes, expected at most {LENGTH}"),
        ("prompt=" + "%E4%B8%83" * 9, 400, f"prompt has 27 bytes, expected at most {LENGTH}"),
        ("prompt=7%FF", 400, "expected UTF-8"),
        ("prompt=7%00", 400, "expected no zero byte"),
    ],
)
async def test_prompts_without_a_meaning_are_rejected(
    client: httpx.AsyncClient, query: str, status: int, words: str
) -> None:
    for path in ("/search", "/generate"):
        response = await client.get(f"{path}?{query}")
        assert response.status_code == status
        assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/search", 400, "prompt is missing, expected one digit"),
        ("GET", f"/search?prompt=7&count={FOUND + 1}", 400, f"expected a whole number in 1..{FOUND}"),
        ("GET", "/search?prompt=d", 400, "does not understand"),
        ("GET", "/search?prompt=7&model=ramp", 400, "is for generation, expected one for search"),
        ("GET", "/search?prompt=7&version=2", 404, "has no version 2"),
        ("GET", "/search?text=7", 400, "unknown query parameter 'text', expected one of prompt, count"),
        ("GET", "/generate?prompt=dt", 400, "prompt is 'dt', which names no digit"),
        (
            "GET",
            "/generate?prompt=7&label=7",
            400,
            "prompt and label are both given, expected only one of them",
        ),
        ("GET", "/generate?prompt=7&digit=7", 400, "prompt and digit are both given"),
        (
            "GET",
            "/generate?prompt=7t&count=4",
            413,
            "count is 4, expected at most 3 with a prompt that names",
        ),
        ("GET", f"/generate?prompt=7&count={MOST + 1}", 413, f"count is {MOST + 1}, expected at most {MOST}"),
        ("POST", "/search?top_k=271", 400, "top_k is '271', expected a whole number in 1..270"),
    ],
)
async def test_wrong_requests_say_what_was_expected(
    client: httpx.AsyncClient, method: str, path: str, status: int, words: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.json()


async def test_a_prompt_and_latents_are_too_much(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", json={"prompt": "7", "z": [0.0] * 6})
    assert response.status_code == 400
    assert "prompt and z are both given" in response.json()["error"]
    response = await client.post("/generate?prompt=7", content=bytes(24), headers={"content-type": OCTETS})
    assert "prompt and a raw body are both given" in response.json()["error"]


@pytest.mark.parametrize("path", ["/search?prompt=7", "/generate?prompt=7"])
async def test_without_a_search_model_prompts_get_404(
    add_generator: Callable[..., Path], tmp_path: Path, path: str
) -> None:
    add_generator()
    limits = settings(tmp_path).model_copy(update={"default_classifier": None})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    app = create_app(predictor, limits, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get(path)
        assert (response.status_code, response.json()) == (404, {"error": "no model for search is loaded"})
        posted = await client.post("/search", content=png(1), headers={"content-type": "image/png"})
        assert (posted.status_code, posted.json()) == (404, {"error": "no model for captioning is loaded"})
        described = (await client.get("/openapi.json")).json()["components"]["schemas"]["GenerateRequest"]
        assert "prompt" not in described["properties"]
    await predictor.close()


async def test_the_captioning_model_must_be_the_search_models_own(
    add_generator: Callable[..., Path], tmp_path: Path
) -> None:
    add_generator()
    add_search(tmp_path, version=2)
    add_captioner(tmp_path, version=1)
    limits = settings(tmp_path).model_copy(update={"default_classifier": None})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    app = create_app(predictor, limits, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/generate?prompt=7t")
    await predictor.close()
    assert response.status_code == 404
    assert "model 'text-image' has no version 2" in response.json()["error"]
