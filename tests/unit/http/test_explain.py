"""POST /explain: methods, targets, formats, and what it costs."""

import base64
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.batching.request import Done, InferenceRequest
from service.content.overlay import SCALE
from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel
from tests.support.http import OCTETS, image, png, settings
from tests.support.models import add_gradient, mean_classifier

RAW = {"content-type": OCTETS}
PNG = {"accept": "image/png", **RAW}


class Watched:
    """A predictor that notes what is submitted."""

    def __init__(self, inner: LocalPredictor) -> None:
        self._inner = inner
        self.submitted: list[InferenceRequest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Note the request, and pass it on."""
        self.submitted.append(request)
        return self._inner.submit(request, done, admitted=admitted)


@pytest.fixture
async def watched(add_classifier: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Watched]:
    add_classifier()
    add_classifier("another", 3)
    mean_classifier(tmp_path)
    add_gradient(tmp_path)
    predictor = LocalPredictor(settings(tmp_path), Metrics())
    await predictor.start()
    yield Watched(predictor)
    await predictor.close()


@pytest.fixture
async def client(watched: Watched, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(watched, settings(tmp_path), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


async def test_occlusion_finds_the_only_pixel_that_counts(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain?patch=2&stride=2", content=image(7).tobytes(), headers=RAW)
    answer = response.json()
    assert response.status_code == 200
    assert (answer["model"], answer["version"], answer["method"]) == ("first-pixel", 1, "occlusion")
    (explanation,) = answer["explanations"]
    assert (explanation["target"], explanation["probability"]) == ("7", 1)
    seen = np.array(explanation["attributions"])
    expected = np.zeros((28, 28))
    expected[:2, :2] = 1
    np.testing.assert_array_equal(seen, expected)
    assert answer["rows"] == 1 + 14 * 14
    assert answer["milliseconds"] > 0
    assert "queue;dur=" in response.headers["server-timing"]


async def test_another_label_may_be_the_target(client: httpx.AsyncClient) -> None:
    path = "/explain?patch=2&stride=2&target=0"
    (explanation,) = (await client.post(path, content=image(7).tobytes(), headers=RAW)).json()["explanations"]
    assert (explanation["target"], explanation["probability"]) == ("0", 0)
    assert np.array(explanation["attributions"])[0, :3].tolist() == [-1, -1, 0]  # a hidden 7 is a 0


async def test_lime_gives_the_superpixel_that_counts_the_largest_coefficient(
    client: httpx.AsyncClient,
) -> None:
    body = image(7).tobytes()
    answer = (await client.post("/explain?method=lime&samples=60", content=body, headers=RAW)).json()
    seen = np.array(answer["explanations"][0]["attributions"])
    assert answer["rows"] == 61
    assert np.all(seen[:4, :4] == seen.max())
    assert seen[0, 0] > 0.5
    assert np.abs(seen[4:]).max() < 0.1
    assert not seen[:, 20:].any()  # no ink, no superpixel
    again = (await client.post("/explain?method=lime&samples=60", content=body, headers=RAW)).json()
    other = (await client.post("/explain?method=lime&samples=60&seed=1", content=body, headers=RAW)).json()
    assert again["explanations"] == answer["explanations"] != other["explanations"]


async def test_integrated_gradients_run_on_the_classifiers_gradient_model(
    client: httpx.AsyncClient, watched: Watched
) -> None:
    path = "/explain?method=integrated_gradients&steps=50"
    body = np.stack([image(7), image(3)])
    answer = (await client.post(path, content=body.tobytes(), headers=RAW)).json()
    assert answer["rows"] == 2 + 100
    for explanation, row, label in zip(answer["explanations"], body, (7, 3), strict=True):
        assert explanation["target"] == str(label)
        np.testing.assert_allclose(explanation["attributions"], row * (label + 1.0))
    assert [each.model for each in watched.submitted] == ["first-pixel", *["first-pixel-gradient"] * 3]
    assert [each.version for each in watched.submitted] == [1] * 4
    lowest = np.concatenate([each.inputs["images"][:, 14, 14] for each in watched.submitted[1:]])
    np.testing.assert_allclose(lowest[:50], (np.arange(50) + 0.5) / 50 * 255, rtol=1e-5)


async def test_rows_run_at_low_priority_in_requests_that_the_limit_allows(
    client: httpx.AsyncClient, watched: Watched
) -> None:
    sent = {**RAW, "inkserve-priority": "normal"}
    response = await client.post("/explain?model=mean", content=image(7).tobytes(), headers=sent)
    assert response.json()["rows"] == 1 + 13 * 13
    assert {each.priority for each in watched.submitted} == {"low"}
    assert [each.rows for each in watched.submitted] == [40, 40, 40, 40, 10]


async def test_a_mean_falls_by_the_ink_that_is_hidden(client: httpx.AsyncClient) -> None:
    """The classifier's probability of 0 is the mean: each square takes its own share of it away."""
    path = "/explain?model=mean&patch=28&target=0"
    (explanation,) = (await client.post(path, content=image(9).tobytes(), headers=RAW)).json()["explanations"]
    seen = np.array(explanation["attributions"])
    np.testing.assert_allclose(seen, np.full((28, 28), image(9).mean() / 255), rtol=1e-5)


async def test_pictures_are_prepared_and_shown_with_their_colours(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain?patch=2&stride=2", content=image(7).tobytes(), headers=PNG)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["inkserve-explained"] == "7"
    assert response.headers["inkserve-cost"].startswith("rows=197, milliseconds=")
    assert (response.headers["inkserve-model"], response.headers["inkserve-version"]) == ("first-pixel", "1")
    shown = pixels(response.content)
    assert shown.shape == (28 * SCALE, 28 * SCALE, 3)
    red, green, _ = shown[SCALE, SCALE]  # in the hidden square, beside the first pixel's ink
    assert red > 150 > green
    assert shown[-1, -1].tolist() == [255, 255, 255]
    ink = shown[12 * SCALE, 13 * SCALE]
    assert ink[0] == ink[1] == ink[2] < 128
    posted = await client.post("/explain?patch=2&stride=2&show_overlay=true", content=png(7))
    (explanation,) = posted.json()["explanations"]
    np.testing.assert_array_equal(pixels(base64.b64decode(explanation["overlay"])), shown)


async def test_several_images_share_a_sheet(client: httpx.AsyncClient) -> None:
    body = np.stack([image(each) for each in (1, 2, 3)]).tobytes()
    response = await client.post("/explain?patch=14", content=body, headers=PNG)
    assert response.headers["inkserve-explained"] == "1,2,3"
    sheet = pixels(response.content)
    assert sheet.shape == (2 * 28 * SCALE, 2 * 28 * SCALE, 3)
    assert sheet[-1, -1].tolist() == [255, 255, 255]  # the place of a fourth


async def test_bodies_are_those_of_classify(client: httpx.AsyncClient) -> None:
    path = "/explain?patch=14"
    bodies = [
        {"content": png(4), "headers": {"content-type": "image/png"}},
        {"json": {"images": image(4).tolist()}},
        {"files": [("images", ("4.png", png(4)))]},
    ]
    answers = [(await client.post(path, **body)).json()["explanations"] for body in bodies]  # type: ignore[arg-type]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0]["target"] == "4"


async def test_an_image_without_ink_has_nothing_to_explain(client: httpx.AsyncClient) -> None:
    empty = bytes(784)
    for method in ("occlusion", "lime", "integrated_gradients"):
        response = await client.post(f"/explain?method={method}&samples=9", content=empty, headers=RAW)
        assert response.status_code == 200
        assert not np.any(response.json()["explanations"][0]["attributions"])
        shown = await client.post(f"/explain?method={method}&samples=9", content=empty, headers=PNG)
        assert np.all(pixels(shown.content) == 255)


@pytest.mark.parametrize(
    ("path", "count", "status", "words"),
    [
        (
            "/explain?method=shap",
            1,
            400,
            "method is 'shap', expected one of occlusion, lime, integrated_grad",
        ),
        ("/explain?target=x", 1, 400, "target is 'x', expected one of 0, 1, 2"),
        ("/explain?patch=29", 1, 400, "patch is '29', expected a whole number in 1..28"),
        ("/explain?stride=0", 1, 400, "stride is '0', expected a whole number in 1..28"),
        ("/explain?steps=1025", 1, 400, "steps is '1025', expected a whole number in 1..1024"),
        ("/explain?samples=4096", 1, 400, "samples is '4096', expected a whole number in 1..4095"),
        ("/explain?top_k=1", 1, 400, "unknown query parameter 'top_k'"),
        ("/explain?show_overlay=1", 1, 400, "show_overlay is '1', expected true or false"),
        ("/explain?model=first-pixel-gradient", 1, 400, "is for gradient, expected one for classification"),
        (
            "/explain?model=another&method=integrated_gradients",
            1,
            404,
            "model another has no gradients: another-gradient, version 3, is not loaded; expected another",
        ),
        ("/explain", 17, 413, "request has 17 images, expected at most 16"),
        (
            "/explain?patch=1&stride=1",
            16,
            413,
            "occlusion of 16 images takes 12560 rows, expected at most 4096: 785 for each image",
        ),
    ],
)
async def test_wrong_requests_say_what_was_expected(
    client: httpx.AsyncClient, path: str, count: int, status: int, words: str
) -> None:
    response = await client.post(path, content=bytes(784 * count), headers=RAW)
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.json()


async def test_overlays_are_asked_for_once(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain?show_overlay=true", content=bytes(784), headers=PNG)
    assert response.status_code == 400
    assert "show_overlay is given with Accept: image/png" in response.json()["error"]


async def test_without_a_classifier_there_is_nothing_to_explain(
    add_generator: Callable[..., Path], tmp_path: Path
) -> None:
    add_generator()
    limits = settings(tmp_path).model_copy(update={"default_classifier": None})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    app = create_app(predictor, limits, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/explain", content=bytes(784), headers=RAW)
    await predictor.close()
    assert (response.status_code, response.json()) == (
        404,
        {"error": "no model for classification is loaded"},
    )
