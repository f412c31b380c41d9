"""What the manifest's `preprocess` does to pictures that come over HTTP, in each of their forms."""

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.http.app import create_app
from service.models.manifest import MANIFEST_FILE
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings


def light_picture(first_pixel: int) -> bytes:
    """A PNG of 28x28, dark strokes on white, with one pixel that decides the label."""
    pixels = np.full((28, 28), 255, np.uint8)
    pixels[10:18, 12:16] = 0
    pixels[0, 0] = first_pixel
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def client(add_classifier: Callable[..., Path], tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A service with one classifier of grey 28x28 images for each preprocess, and one that names none."""
    for name, preprocess in (
        ("first-pixel", None),
        ("digit", "mnist-digit"),
        ("fashion", "resize"),
        ("photos", "center-crop"),
        ("numbers", "none"),
    ):
        path = add_classifier(name) / MANIFEST_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess": preprocess}))
    predictor = LocalPredictor(settings(tmp_path), Metrics())
    await predictor.start()
    app = create_app(predictor, settings(tmp_path), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
    await predictor.close()


async def post(client: httpx.AsyncClient, form: str, model: str, content: bytes) -> httpx.Response:
    url = f"/classify?model={model}"
    if form == "body":
        return await client.post(url, content=content)
    if form == "json":
        return await client.post(url, json={"images": [base64.b64encode(content).decode()]})
    return await client.post(url, files={"file": ("picture.png", content, "image/png")})


FORMS = pytest.mark.parametrize("form", ["body", "json", "form"])


@FORMS
@pytest.mark.parametrize(
    ("model", "first_pixel"), [("first-pixel", 248), ("digit", 248), ("fashion", 7), ("photos", 7)], ids=str
)
async def test_only_a_model_of_digits_has_light_pictures_inverted(
    client: httpx.AsyncClient, form: str, model: str, first_pixel: int
) -> None:
    response = await post(client, form, model, light_picture(first_pixel))
    assert response.status_code == 200, response.text
    assert response.json()["predictions"][0]["label"] == "7"


@FORMS
async def test_model_that_accepts_no_pictures_says_so(client: httpx.AsyncClient, form: str) -> None:
    response = await post(client, form, "numbers", light_picture(7))
    assert response.status_code == 400
    assert "preprocess is none" in response.text


async def test_model_that_accepts_no_pictures_takes_rows(client: httpx.AsyncClient) -> None:
    row = np.full((28, 28), 7, np.uint8)
    raw = await client.post("/classify?model=numbers", content=row.tobytes())
    as_json = await client.post("/classify?model=numbers", json={"images": row.tolist()})
    assert [each.json()["predictions"][0]["label"] for each in (raw, as_json)] == ["7", "7"]
