"""Encoding, decoding, reconstruction and interpolation."""

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.content.latents import draw_latents
from service.content.npy import npy_from_array
from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.http import OCTETS, image, png, settings
from tests.support.models import LATENT, add_encoder

RAW = {"accept": OCTETS}
JSON = {"content-type": "application/json"}
AS_JSON = {"accept": "application/json"}
NPY = "application/x-npy"
TWO = np.stack([image(3), image(18)])
SENT = {"content-type": OCTETS}


@pytest.fixture
async def client(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(predictor, settings(tmp_path)) as client:
        yield client


def asking(predictor: LocalPredictor, limits: Settings) -> httpx.AsyncClient:
    app = create_app(predictor, limits, Metrics())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def latents(images: np.ndarray, *labels: int) -> np.ndarray:
    """What the encoder of the tests makes of images."""
    first = images.reshape(len(images), -1)[:, :LATENT] / np.float32(10)
    return first + np.array(labels, np.float32)[:, None]


def pixels(response: httpx.Response) -> np.ndarray:
    shape = [int(size) for size in response.headers["inkserve-shape"].split(",")]
    return np.frombuffer(response.content, np.uint8).reshape(shape)


@pytest.mark.usefixtures("other_tasks")
async def test_the_classifier_reads_the_labels_that_an_encoder_needs(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/encode", content=TWO.tobytes(), headers=SENT)).json()
    assert {name: answer[name] for name in ("model", "version", "classifier", "labels")} == {
        "model": "ramp-encoder",
        "version": 1,
        "classifier": "first-pixel",
        "labels": ["3", "8"],
    }
    expected = latents(TWO, 3, 8)
    assert answer["latents"] == answer["outputs"]["mean"] == pytest.approx(expected)
    assert answer["outputs"]["opposite"] == pytest.approx(-expected)


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.parametrize(("given", "labels"), [("5", (5, 5)), ("5,0", (5, 0))])
async def test_named_labels_are_used_for_all_images_or_for_each(
    client: httpx.AsyncClient, given: str, labels: tuple[int, int]
) -> None:
    answer = (await client.post(f"/encode?label={given}", content=TWO.tobytes(), headers=SENT)).json()
    assert (answer["classifier"], answer["labels"]) == (None, [str(label) for label in labels])
    assert answer["latents"] == pytest.approx(latents(TWO, *labels))


@pytest.mark.usefixtures("other_tasks")
async def test_bodies_and_answers_have_several_formats(client: httpx.AsyncClient) -> None:
    expected = latents(TWO[:1], 3)
    bodies = [
        (png(3), "image/png"),
        (TWO[:1].tobytes(), OCTETS),
        (npy_from_array(TWO[0]), NPY),
        (json.dumps({"images": TWO[0].tolist()}).encode(), "application/json"),
    ]
    for body, kind in bodies:
        raw = await client.post("/encode", content=body, headers={"content-type": kind, **RAW})
        assert raw.status_code == 200, (kind, raw.text)
        assert raw.headers["inkserve-shape"] == f"1,{LATENT}"
        assert (raw.headers["inkserve-labels"], raw.headers["inkserve-classifier"]) == ("3", "first-pixel")
        assert np.frombuffer(raw.content, np.float32) == pytest.approx(expected[0])
        npy = await client.post("/encode", content=body, headers={"content-type": kind, "accept": NPY})
        assert np.load(io.BytesIO(npy.content)) == pytest.approx(expected)
        assert (npy.headers["inkserve-model"], npy.headers["inkserve-labels"]) == ("ramp-encoder", "3")


@pytest.mark.usefixtures("other_tasks")
async def test_what_is_encoded_is_decoded_and_reconstructed_alike(client: httpx.AsyncClient) -> None:
    encoded = (await client.post("/encode", content=TWO.tobytes(), headers=SENT)).json()
    body = {"latents": encoded["latents"], "labels": encoded["labels"]}
    decoded = await client.post("/decode", json=body, headers=RAW)
    assert (decoded.headers["inkserve-model"], decoded.headers["inkserve-labels"]) == ("ramp", "3,8")
    by_generate = await client.post("/generate", json={"z": encoded["latents"], "label": "3"}, headers=RAW)
    assert np.array_equal(pixels(decoded)[0], pixels(by_generate)[0])
    reconstructed = await client.post("/reconstruct", content=TWO.tobytes(), headers={**SENT, **RAW})
    assert reconstructed.content == decoded.content
    assert reconstructed.headers["inkserve-classifier"] == "first-pixel"
    as_json = await client.post("/reconstruct", content=TWO.tobytes(), headers={**SENT, **AS_JSON})
    answer = as_json.json()
    assert (answer["model"], answer["encoder"], answer["classifier"]) == (
        "ramp",
        "ramp-encoder",
        "first-pixel",
    )
    assert [each["label"] for each in answer["images"]] == ["3", "8"]
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["png"]))))
    assert np.array_equal(first, pixels(decoded)[0])


@pytest.mark.usefixtures("other_tasks")
async def test_latents_come_in_three_formats_with_their_labels(client: httpx.AsyncClient) -> None:
    z = draw_latents(3, 2, LATENT)
    asked = [
        await client.post("/decode?label=7,1", content=z.tobytes(), headers={**SENT, **RAW}),
        await client.post(
            "/decode?label=7,1", content=npy_from_array(z), headers={"content-type": NPY, **RAW}
        ),
        await client.post("/decode", json={"latents": z.tolist(), "labels": [7, "1"]}, headers=RAW),
        await client.post(
            "/decode?model=ramp&version=1&label=7,1", json={"latents": z.tolist()}, headers=RAW
        ),
    ]
    assert [each.status_code for each in asked] == [200] * 4, asked[0].text
    assert len({each.content for each in asked}) == 1
    one = await client.post("/decode", json={"latents": z.tolist(), "labels": "7"}, headers=RAW)
    assert one.headers["inkserve-labels"] == "7,7"
    mixed = await client.post("/decode", json={"latents": z.tolist()}, headers=RAW)
    assert mixed.headers["inkserve-labels"] == "0,1"
    seeded = await client.get("/generate?seed=3&count=2", headers=RAW)
    assert mixed.content == seeded.content


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.parametrize(
    ("url", "body", "kind", "message"),
    [
        ("/encode?label=1,2,3", TWO.tobytes(), OCTETS, "3 labels and 2 rows, expected one label or 2"),
        ("/encode?label=mixed", TWO.tobytes(), OCTETS, "label is 'mixed', expected one of 0, 1"),
        ("/encode?label=ten", TWO.tobytes(), OCTETS, "label is 'ten', expected one of 0, 1"),
        (
            "/encode?model=ramp",
            TWO.tobytes(),
            OCTETS,
            "model ramp is for generation, expected one for encoding",
        ),
        (
            "/decode",
            b'{"latents":[1]}',
            "application/json",
            "latents has shape [1], expected rows of shape [6]",
        ),
        ("/decode", b'{"labels":["1"]}', "application/json", "latents is missing"),
        ("/decode", b'{"latents":[0,0,0,0,0,0],"labels":[[1]]}', "application/json", "labels holds"),
        ("/decode", b'{"latents":[0,0,0,0,0,0],"labels":true}', "application/json", "labels holds 'True'"),
        ("/decode", b'{"latents":[0,0,0,0,0,0],"labels":[]}', "application/json", "0 labels and 1 rows"),
        ("/decode?label=1", b'{"latents":[0,0,0,0,0,0],"labels":"1"}', "application/json", "expected one of"),
        ("/decode", b"\x00\x00\xc0\x7f" * LATENT, OCTETS, "latents hold a value that is not finite"),
        ("/decode?model=ramp-encoder", bytes(24), OCTETS, "is for encoding, expected one for generation"),
    ],
)
async def test_a_wrong_wish_says_what_was_seen_and_expected(
    client: httpx.AsyncClient, url: str, body: bytes, kind: str, message: str
) -> None:
    response = await client.post(url, content=body, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


async def test_an_encoder_without_labels_needs_none(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    add_generator("plain")
    add_encoder(tmp_path, "plain-encoder", labelled=False)
    add_encoder(tmp_path, "alone")
    limits = settings(tmp_path).model_copy(update={"default_encoder": "plain-encoder"})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    async with asking(predictor, limits) as client:
        answer = (await client.post("/encode", content=TWO.tobytes(), headers=SENT)).json()
        refused = await client.post("/encode?label=1", content=TWO.tobytes(), headers=SENT)
        unlabelled = await client.post("/reconstruct", content=TWO.tobytes(), headers=SENT)
        unpaired = await client.post("/reconstruct?model=alone", content=TWO.tobytes(), headers=SENT)
    await predictor.close()
    assert (answer["model"], answer["labels"], answer["classifier"]) == ("plain-encoder", None, None)
    assert answer["latents"] == pytest.approx(latents(TWO, 0, 0))
    assert (refused.status_code, unlabelled.status_code, unpaired.status_code) == (400, 400, 404)
    assert refused.json()["error"] == "label is '1', but model plain-encoder accepts none"
    assert "knows no label, but model plain needs one" in unlabelled.json()["error"]
    assert "encoder alone has no generator" in unpaired.json()["error"]


async def test_labels_that_no_header_can_hold_are_told_in_json_alone(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    add_encoder(tmp_path)
    limits = settings(tmp_path).model_copy(update={"max_request_rows": 300, "max_body_bytes": 10**6})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    body = np.repeat(TWO[:1], 257, axis=0).tobytes()
    async with asking(predictor, limits) as client:
        raw = await client.post("/encode", content=body, headers={**SENT, **RAW})
        told = await client.post("/encode?label=3", content=body, headers={**SENT, **RAW})
        as_json = await client.post("/encode", content=body, headers=SENT)
    await predictor.close()
    assert (raw.status_code, told.status_code, as_json.status_code) == (413, 200, 200)
    assert "expected at most 256, whose labels fit a header" in raw.json()["error"]
    assert len(as_json.json()["labels"]) == 257


async def test_the_way_from_one_seed_to_another_changes_its_label_in_the_middle(
    client: httpx.AsyncClient,
) -> None:
    url = "/interpolate?model=ramp&seed=1&to_seed=2&from=3&to=8&steps=5"
    way = await client.get(url, headers=RAW)
    assert (way.headers["inkserve-seed"], way.headers["inkserve-labels"]) == ("1", "3,3,3,8,8")
    first = await client.get("/generate?seed=1&label=3", headers=RAW)
    last = await client.get("/generate?seed=2&label=8", headers=RAW)
    assert np.array_equal(pixels(way)[[0, -1]], np.concatenate([pixels(first), pixels(last)]))
    straight = await client.get(f"{url}&method=linear", headers=RAW)
    assert straight.content != way.content
    answer = (await client.get(url, headers=AS_JSON)).json()
    assert (answer["seed"], answer["to_seed"], answer["method"]) == (1, 2, "spherical")
    assert [each["label"] for each in answer["images"]] == ["3", "3", "3", "8", "8"]


async def test_one_seed_has_two_ends_and_the_sheet_one_row(client: httpx.AsyncClient) -> None:
    way = await client.get("/interpolate?seed=1&from=3", headers=RAW)
    both = await client.get("/generate?seed=1&label=3&count=2", headers=RAW)
    assert way.headers["inkserve-shape"] == "9,28,28"
    assert np.array_equal(pixels(way)[[0, -1]], pixels(both))
    sheet = await client.get("/interpolate?seed=1&from=3")
    assert Image.open(io.BytesIO(sheet.content)).size == (9 * 28, 28)
    moving = await client.get("/interpolate?seed=1&from=3", headers={"accept": "image/webp"})
    assert getattr(Image.open(io.BytesIO(moving.content)), "n_frames", 1) == 16
    assert moving.headers["inkserve-seed"] == "1"
