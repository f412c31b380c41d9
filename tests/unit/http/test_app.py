"""The HTTP application over real models, without a socket: every form in, every form out."""

import asyncio
import base64
import io
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.content.digits import digit_from_picture
from service.content.latents import draw_latents
from service.errors import InkserveError
from service.grpc.inference import SERVICE
from service.http.app import create_app
from service.http.error_responses import error_response, row_of
from service.http.routes import v2_infer
from service.http.routes.drawing import LATENTS_ON_LOOP_ROWS
from service.models.manifest import MANIFEST_FILE, read_manifest
from service.observability import load
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel
from tests.support.http import image, png, settings
from tests.support.models import LATENT, add_scored
from tests.support.openapi import Documented

ROOT = Path(__file__).parents[3]
OCTETS = {"content-type": "application/octet-stream"}
JSON_BODY = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def documents() -> list[Documented]:
    """The application's document, once a test has got it: to make it takes longer than most tests."""
    return []


@pytest.fixture
async def client(
    predictor: LocalPredictor, tmp_path: Path, documents: list[Documented]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application; every response that it gets must be a documented one."""
    app = create_app(predictor, settings(tmp_path), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        if not documents:
            documents.append(Documented((await client.get("/openapi.json")).json()))
        (documented,) = documents

        async def check(response: httpx.Response) -> None:
            body = await response.aread()
            asked = response.request.method, response.request.url.path
            documented.check(*asked, response.status_code, response.headers, body)

        client.event_hooks = {"response": [check]}
        yield client


def labels(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [prediction["label"] for prediction in response.json()["predictions"]]


async def test_raw_rows_are_classified(client: httpx.AsyncClient) -> None:
    body = b"".join(image(digit).tobytes() for digit in (3, 1, 4))
    response = await client.post("/classify", content=body, headers=OCTETS)
    assert labels(response) == ["3", "1", "4"]
    answer = response.json()
    assert (answer["model"], answer["version"]) == ("first-pixel", 1)
    assert answer["predictions"][0] == {
        "label": "3",
        "probability": 1.0,
        "probabilities": {str(digit): float(digit == 3) for digit in range(10)},
    }


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("body", [image(5).tobytes(), png(5)])
async def test_without_a_content_type_the_first_bytes_decide(
    client: httpx.AsyncClient, content_type: str | None, body: bytes
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert labels(await client.post("/classify", content=body, headers=headers)) == ["5"]


async def test_a_png_is_classified(client: httpx.AsyncClient) -> None:
    assert labels(await client.post("/classify", content=png(7), headers={"content-type": "image/png"})) == [
        "7"
    ]


async def test_a_form_of_files_is_classified_in_its_order(client: httpx.AsyncClient) -> None:
    files = [
        ("images", ("a.png", png(2))),
        ("images", ("b.raw", image(6).tobytes())),
        ("x", ("c.png", png(4))),
    ]
    assert labels(await client.post("/classify", files=files)) == ["2", "6", "4"]


@pytest.mark.slow
async def test_a_large_form_needs_no_disk(
    predictor: LocalPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    file = io.BytesIO()
    Image.fromarray(image(7)).resize((1200, 1200)).save(file, "PNG", compress_level=0)
    assert file.tell() > 2**20  # what the form parser would otherwise hold in memory
    large = settings(tmp_path).model_copy(update={"max_body_bytes": 2**21})
    app = create_app(predictor, large, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert len(labels(await client.post("/classify", files={"image": file.getvalue()}))) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"images": image(8).tolist()}, ["8"]),
        ({"images": [image(8).tolist(), image(9).tolist()]}, ["8", "9"]),
        ([image(8).tolist()], ["8"]),
        ({"images": image(3).ravel().tolist()}, ["3"]),
        ({"images": base64.b64encode(png(1)).decode()}, ["1"]),
        (
            {"images": [base64.b64encode(image(2).tobytes()).decode(), base64.b64encode(png(1)).decode()]},
            ["2", "1"],
        ),
    ],
)
async def test_json_is_classified(client: httpx.AsyncClient, body: object, expected: list[str]) -> None:
    assert labels(await client.post("/classify", json=body)) == expected


async def test_a_version_that_comes_between_answers_with_its_own_labels(
    client: httpx.AsyncClient, predictor: LocalPredictor, add_classifier: Callable[..., Path]
) -> None:
    submit = predictor.submit
    reloads: list[asyncio.Task[None]] = []

    async def reload(*arguments: Any) -> None:
        add_classifier(version=2, labels=tuple("ABCDEFGHIJ"))
        assert await predictor.reload() == []
        submit(*arguments)

    def reload_first(*arguments: Any) -> Cancel:
        reloads.append(asyncio.ensure_future(reload(*arguments)))
        return reloads[0].cancel  # type: ignore[return-value]

    predictor.submit = reload_first  # type: ignore[assignment,method-assign]
    response = await client.post("/classify", content=image(2).tobytes(), headers=OCTETS)
    assert labels(response) == ["C"]
    assert response.json()["version"] == 2


async def test_top_k_keeps_the_largest_in_descending_order(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/classify?top_k=2&model=another", content=image(4).tobytes(), headers=OCTETS
    )
    (prediction,) = response.json()["predictions"]
    assert (prediction["label"], prediction["probability"]) == ("e", 1.0)
    assert list(prediction["probabilities"].items()) == [("e", 1.0), ("a", 0.0)]
    assert response.json()["version"] == 3


async def test_model_with_a_threshold_abstains_above_it(tmp_path: Path) -> None:
    add_scored(tmp_path)
    metrics = Metrics()
    predictor = LocalPredictor(settings(tmp_path), metrics)
    await predictor.start()
    try:
        app = create_app(predictor, settings(tmp_path), metrics)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            images = np.zeros((2, 28, 28), np.uint8)
            images[:, 0, 0] = 3, 4
            images[0, 5, 5] = 200
            body = images.tobytes()
            response = await client.post("/classify", content=body, headers=OCTETS)
            raw = await client.post(
                "/classify", content=body, headers=OCTETS | {"accept": OCTETS["content-type"]}
            )
            openapi = (await client.get("/openapi.json")).json()
    finally:
        await predictor.close()
    told = [(each["label"], each["ood_score"], each["abstain"]) for each in response.json()["predictions"]]
    assert told == [("3", 200.0, True), ("4", 4.0, False)]
    Documented(openapi).check("POST", "/classify", 200, response.headers, response.content)
    assert (raw.headers["inkserve-shape"], len(raw.content)) == ("2,10", 2 * 10 * 4)
    of = {"model": "first-pixel", "version": "1"}
    value = metrics.registry.get_sample_value
    assert value("inkserve_abstained_total", of) == 2
    assert value("inkserve_relative_ood_score_count", of) == 4
    assert value("inkserve_relative_ood_score_bucket", of | {"le": "1.0"}) == 2
    assert value("inkserve_relative_ood_score_sum", of) == pytest.approx(2 * 204 / 99)


async def test_default_of_the_manifest_answers_requests_that_name_no_model(
    tmp_path: Path, add_classifier: Callable[..., Path], add_generator: Callable[..., Path]
) -> None:
    folders = [add_generator(name) for name in ("first", "second")]
    folders += [add_classifier(name) for name in ("third", "fourth")]
    for folder in folders[1:3]:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"default": True}))
    named = settings(tmp_path).model_copy(update={"default_classifier": None, "default_generator": None})
    metrics = Metrics()
    predictor = LocalPredictor(named, metrics)
    await predictor.start()
    try:
        app = create_app(predictor, named, metrics)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            defaults = (await client.get("/models")).json()["defaults"]
            generated = await client.post("/generate", headers={"accept": "application/json"})
            classified = await client.post("/classify", content=bytes(784), headers=OCTETS)
            pinned = await client.post("/generate?model=first", headers={"accept": "application/json"})
    finally:
        await predictor.close()
    assert defaults == {"classification": "third", "generation": "second"}
    assert [each.json()["model"] for each in (generated, classified, pinned)] == ["second", "third", "first"]


async def test_model_without_a_threshold_tells_nothing_of_abstention(client: httpx.AsyncClient) -> None:
    response = await client.post("/classify", content=image(3).tobytes(), headers=OCTETS)
    assert response.json()["predictions"][0].keys() == {"label", "probability", "probabilities"}
    assert "inkserve_abstained_total{" not in (await client.get("/metrics")).text


async def test_show_input_returns_each_image_as_the_model_sees_it(client: httpx.AsyncClient) -> None:
    drawing = Image.new("L", (60, 60), 255)
    drawing.paste(0, (20, 10, 32, 50))
    file = io.BytesIO()
    drawing.save(file, "PNG")
    for body, count in ((file.getvalue(), 1), (image(3).tobytes() + image(0).tobytes(), 2)):
        response = await client.post("/classify?show_input=true", content=body)
        predictions = response.json()["predictions"]
        seen = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["input"])))) for each in predictions]
        assert len(seen) == count
        if count == 1:
            assert np.array_equal(seen[0], digit_from_picture(drawing))
        else:
            assert np.array_equal(seen, [image(3), image(0)])
    without = await client.post("/classify?show_input=false", content=body)
    assert "input" not in without.json()["predictions"][0]


async def test_accepting_octet_stream_returns_raw_probabilities(client: httpx.AsyncClient) -> None:
    body = image(3).tobytes() + image(0).tobytes()
    headers = OCTETS | {"accept": "application/octet-stream"}
    response = await client.post("/classify?version=1", content=body, headers=headers)
    probabilities = np.frombuffer(response.content, "<f4").reshape(2, 10)
    assert probabilities.argmax(axis=1).tolist() == [3, 0]
    assert response.headers["inkserve-shape"] == "2,10"
    assert (response.headers["inkserve-model"], response.headers["inkserve-version"]) == ("first-pixel", "1")


RAW = image(1).tobytes()


@pytest.mark.parametrize(
    ("url", "body", "headers", "status", "message"),
    [
        ("/classify", RAW[:-1], OCTETS, 400, "783 bytes, expected a multiple of 784"),
        ("/classify", b"", OCTETS, 400, "expected"),
        ("/classify", RAW * 41, OCTETS, 413, "41"),
        ("/classify", b"x" * 70_000, OCTETS, 413, "body has 70000 bytes, expected at most 65536"),
        ("/classify", b"GIF89a....", {"content-type": "image/gif"}, 400, "broken GIF"),
        ("/classify", RAW, {"content-type": "text/plain"}, 415, "Content-Type is 'text/plain', expected"),
        ("/classify", RAW, OCTETS | {"accept": "text/html"}, 406, "Accept is 'text/html', expected one of"),
        ("/classify", b"{", {"content-type": "application/json"}, 400, "body is not JSON"),
        ("/classify", b"{}", {"content-type": "application/json"}, 400, "images is missing"),
        ("/classify", b'{"images":1,"a":2}', JSON_BODY, 400, "a is unknown, expected one of images"),
        ("/classify", b"null", {"content-type": "application/json"}, 400, "expected"),
        ("/classify", b"--x", {"content-type": "multipart/form-data"}, 400, "form cannot be read"),
        ("/classify?top_k=11", RAW, OCTETS, 400, r"top_k is '11', expected a whole number in 1..10"),
        ("/classify?topk=1", RAW, OCTETS, 400, "unknown query parameter 'topk'"),
        (
            "/classify?top_k=1",
            RAW,
            OCTETS | {"accept": "application/octet-stream"},
            400,
            "top_k is given with Accept: application/octet-stream",
        ),
        ("/classify?show_input=1", RAW, OCTETS, 400, "show_input is '1', expected true or false"),
        (
            "/classify?show_input=true",
            RAW,
            OCTETS | {"accept": "application/octet-stream"},
            400,
            "show_input is given with Accept: application/octet-stream, which holds only probabilities",
        ),
        (
            "/classify?show_input=true",
            RAW * 17,
            OCTETS,
            413,
            "request has 17 images and show_input, expected at most 16",
        ),
        (
            "/classify?model=x",
            RAW,
            OCTETS,
            404,
            "model 'x' is unknown, expected one of another, first-pixel",
        ),
        ("/classify?version=9", RAW, OCTETS, 404, "model 'first-pixel' has no version 9"),
        ("/classify?version=x", RAW, OCTETS, 400, "version is 'x', expected a whole number"),
        (
            "/classify?model=ramp",
            RAW,
            OCTETS,
            400,
            "model ramp is for generation, expected one for classification",
        ),
    ],
)
async def test_a_wrong_request_says_what_was_seen_and_expected(
    client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    response = await client.post(url, content=body, headers=headers)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


async def test_generated_images_come_as_one_png(client: httpx.AsyncClient) -> None:
    response = await client.get("/generate?label=7&count=16&seed=1")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["inkserve-seed"] == "1"
    sheet = Image.open(io.BytesIO(response.content))
    assert sheet.width >= 4 * 28
    assert sheet.height >= 4 * 28


async def test_a_single_image_is_a_png_of_its_own(client: httpx.AsyncClient) -> None:
    response = await client.get("/generate?seed=1")
    assert Image.open(io.BytesIO(response.content)).size == (28, 28)


async def test_the_three_forms_hold_the_same_pixels(client: httpx.AsyncClient) -> None:
    body = {"label": 7, "count": 3, "seed": 5, "model": "ramp", "version": 1}
    raw = await client.post("/generate", json=body, headers={"accept": "application/octet-stream"})
    assert raw.headers["inkserve-shape"] == "3,28,28"
    images = np.frombuffer(raw.content, np.uint8).reshape(3, 28, 28)
    answer = (await client.post("/generate", json=body, headers={"accept": "application/json"})).json()
    assert (answer["model"], answer["version"], answer["seed"]) == ("ramp", 1, 5)
    assert [each["label"] for each in answer["images"]] == ["7"] * 3
    for pixels, each in zip(images, answer["images"], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(each["png"])))
        assert np.array_equal(np.asarray(picture), pixels)


async def test_the_same_seed_gives_a_prefix_of_the_same_images(client: httpx.AsyncClient) -> None:
    headers = {"accept": "application/octet-stream"}
    many = (await client.get("/generate?seed=9&count=11", headers=headers)).content
    few = (await client.get("/generate?seed=9&count=3", headers=headers)).content
    assert many.startswith(few)
    assert (await client.get("/generate?seed=10&count=3", headers=headers)).content != few


async def test_a_chosen_seed_is_returned(client: httpx.AsyncClient) -> None:
    first = await client.get("/generate?count=2")
    again = await client.get(f"/generate?count=2&seed={first.headers['inkserve-seed']}")
    assert first.content == again.content


@pytest.mark.parametrize("query", ["", "&label=mixed"])
async def test_mixed_labels_wrap_around(client: httpx.AsyncClient, query: str) -> None:
    answer = (await client.get(f"/generate?count=12{query}", headers={"accept": "application/json"})).json()
    assert [each["label"] for each in answer["images"]] == [*"0123456789", "0", "1"]


async def test_digit_still_names_the_label(client: httpx.AsyncClient) -> None:
    headers = {"accept": "application/json"}
    named = (await client.get("/generate?label=7&seed=1&count=2", headers=headers)).json()
    assert (await client.get("/generate?digit=7&seed=1&count=2", headers=headers)).json() == named
    body = {"digit": 7, "seed": 1, "count": 2}
    assert (await client.post("/generate", json=body, headers=headers)).json() == named
    assert [each["digit"] for each in named["images"]] == ["7", "7"]


async def test_a_seeds_images_are_the_same_on_the_loop_and_on_a_thread(client: httpx.AsyncClient) -> None:
    headers = {"accept": "application/octet-stream"}
    few, many = [
        (await client.get(f"/generate?seed=3&count={count}", headers=headers)).content
        for count in (5, LATENTS_ON_LOOP_ROWS + 1)
    ]
    assert len(many) == (LATENTS_ON_LOOP_ROWS + 1) * 784
    assert many.startswith(few)


async def test_latents_may_be_given_instead_of_a_seed(client: httpx.AsyncClient) -> None:
    z = draw_latents(9, 3, LATENT)
    headers = {"accept": "application/octet-stream"}
    seeded = await client.get("/generate?seed=9&count=3&label=2", headers=headers)
    as_json = await client.post("/generate", json={"z": z.tolist(), "label": "2"}, headers=headers)
    as_bytes = await client.post("/generate?label=2", content=z.tobytes(), headers=headers | OCTETS)
    text = base64.b64encode(z.tobytes()).decode()
    as_base64 = await client.post("/generate", json={"z": text, "label": "2"}, headers=headers)
    assert seeded.content == as_json.content == as_bytes.content == as_base64.content
    assert "inkserve-seed" not in as_json.headers


Z = draw_latents(1, 1, LATENT).tobytes()


@pytest.mark.parametrize(
    ("url", "body", "headers", "status", "message"),
    [
        ("/generate?count=0", b"", {}, 400, "count is '0', expected"),
        ("/generate?count=41", b"", {}, 413, "count is 41, expected at most 40"),
        ("/generate?label=eleven", b"", {}, 400, "label is 'eleven', expected one of 0, 1, 2"),
        ("/generate?digit=eleven", b"", {}, 400, "digit is 'eleven', expected one of 0, 1, 2"),
        ("/generate?label=1&digit=1", b"", {}, 400, "label and digit are both given, expected only label"),
        ("/generate?label=1", b'{"digit":1}', JSON_BODY, 400, "label and digit are both given"),
        ("/generate", b'{"label":1,"digit":2}', JSON_BODY, 400, "label and digit are both given"),
        ("/generate?seed=-1", b"", {}, 400, "seed is '-1', expected"),
        ("/generate?seed=18446744073709551616", b"", {}, 400, "seed is"),
        ("/generate?model=first-pixel", b"", {}, 400, "is for classification, expected one for generation"),
        ("/generate?seed=1", b'{"seed":2}', JSON_BODY, 400, "seed is given in the query and in the body"),
        ("/generate", b"[]", JSON_BODY, 400, "body is a JSON list, expected an object"),
        ("/generate", b'{"sed":2}', JSON_BODY, 400, "sed is unknown, expected one of model, version"),
        (
            "/generate",
            b'{"latents":[1]}',
            JSON_BODY,
            400,
            "count, label, seed, prompt, grid, verify, reject, z",
        ),
        ("/generate", b'{"z":[1],"seed":2}', JSON_BODY, 400, "expected one of seed, z or a raw body"),
        ("/generate", b'{"z":[1,2]}', JSON_BODY, 400, "z"),
        ("/generate?count=2", Z, OCTETS, 400, "count is 2, but z has 1 rows"),
        ("/generate", Z[:-1], OCTETS, 400, "expected a multiple of 24"),
        ("/generate", b"\x00\x00\xc0\x7f" * LATENT, OCTETS, 400, "z holds a value that is not finite"),
        ("/generate", b"x", {"content-type": "text/plain"}, 415, "Content-Type is 'text/plain', expected"),
        ("/generate", b"", {"accept": "text/html"}, 406, "expected one of image/png"),
    ],
)
async def test_a_wrong_wish_says_what_was_seen_and_expected(
    client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    response = await client.post(url, content=body, headers=headers)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


@pytest.mark.usefixtures("other_tasks")
async def test_models_are_listed_and_described(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/models")).json()
    assert answer["defaults"] == {
        "classification": "first-pixel",
        "encoding": "ramp-encoder",
        "generation": "ramp",
    }
    assert [(model["name"], model["version"], model["task"]) for model in answer["models"]] == [
        ("another", 3, "classification"),
        ("first-pixel", 1, "classification"),
        ("first-pixel-gradient", 1, "gradient"),
        ("ramp", 1, "generation"),
        ("ramp-encoder", 1, "encoding"),
        ("text", 1, "search"),
        ("text-image", 1, "captioning"),
    ]
    takes_pictures = {model["name"] for model in answer["models"] if model["preprocess"] != "none"}
    assert takes_pictures == {"another", "first-pixel", "ramp-encoder", "text-image"}
    detail = (await client.get("/models/ramp")).json()
    assert detail["inputs"][0] == {"name": "z", "datatype": "FP32", "shape": [-1, LATENT]}
    assert detail["card"] == "# A card\n"
    assert sorted(detail["batch_sizes"] + detail["differing_batch_sizes"]) == [1, 2, 3, 4, 6, 8]
    assert (4 in detail["batch_sizes"], detail["slow_batch_sizes"]) == (True, [])
    assert len(detail["sha256"]) == 64
    missing = await client.get("/models/none")
    assert (missing.status_code, list(missing.json())) == (404, ["error"])
    assert (await client.get("/models/ramp?version=0")).status_code == 400


async def test_the_list_tells_what_a_row_costs(
    client: httpx.AsyncClient, predictor: LocalPredictor, add_classifier: Callable[..., Path]
) -> None:
    for name, cost in (("large", 10**9), ("odd", "much")):
        folder = add_classifier(name)
        manifest = read_manifest(folder).model_copy(update={"metrics": {"multiply_adds": cost}})
        (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    assert await predictor.reload() == []
    listed = (await client.get("/models")).json()["models"]
    costs = {model["name"]: model["multiply_adds"] for model in listed}
    assert costs.pop("large") == 10**9
    assert {"odd", "ramp"} < costs.keys()
    assert set(costs.values()) == {None}
    assert (await client.get("/models/large")).json()["multiply_adds"] == 10**9


async def test_health_follows_the_predictor(client: httpx.AsyncClient, predictor: LocalPredictor) -> None:
    assert (await client.get("/v2/health/live")).status_code == 200
    assert (await client.get("/v2/health/ready")).status_code == 200
    predictor.stop_being_ready()
    assert (await client.get("/v2/health/live")).status_code == 200
    unready = await client.get("/v2/health/ready")
    assert (unready.status_code, unready.headers["retry-after"]) == (503, "1")
    answered = await client.post("/classify", content=RAW, headers=OCTETS)
    assert answered.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [
        ("POST", "/classify", "application/json"),
        ("POST", "/classify", "application/octet-stream"),
        ("GET", "/generate?count=3", "application/json"),
        ("GET", "/generate?count=3", "application/octet-stream"),
        ("GET", "/generate?count=3", "image/png"),
    ],
)
async def test_an_answer_says_where_its_time_went(
    client: httpx.AsyncClient, method: str, path: str, accept: str
) -> None:
    body = RAW * 3 if method == "POST" else b""
    response = await client.request(method, path, content=body, headers=OCTETS | {"accept": accept})
    timing = re.fullmatch(
        r'queue;dur=(\d+\.\d{3}), compute;dur=(\d+\.\d{3}), batch;desc="(\d+)"',
        response.headers["server-timing"],
    )
    assert timing
    assert float(timing[2]) > 0
    assert int(timing[3]) == 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/classify", 405),
        ("DELETE", "/generate", 405),
        ("GET", "/nothing", 404),
        ("POST", "/models", 405),
    ],
)
async def test_every_error_has_one_form(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert (status != 405) or response.headers["allow"]


async def test_requests_are_counted(client: httpx.AsyncClient) -> None:
    await client.post("/classify", content=RAW, headers=OCTETS)
    await client.post("/classify?model=nobody-knows-this", content=RAW, headers=OCTETS)
    await client.get("/models/ramp")
    await client.get("/some/path/of/a/scanner")
    text = (await client.get("/metrics")).text
    assert 'inkserve_requests_total{model="first-pixel",route="/classify",status="200"} 1.0' in text
    assert 'inkserve_requests_total{model="",route="/classify",status="404"} 1.0' in text
    assert 'route="/models/{name}"' in text
    assert "scanner" not in text
    assert "nobody-knows-this" not in text


def all_errors(kind: type[InkserveError] = InkserveError) -> list[type[InkserveError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_a_status(kind: type[InkserveError]) -> None:
    response = error_response(kind("why"))
    row = row_of(kind)
    assert response.status == row.status
    assert {name.wire for name, _ in row.headers} == dict(response.headers).keys()
    assert (b"retry-after" in dict(response.headers)) == (response.status in (429, 503))
    assert (b"inkserve-reason" in dict(response.headers)) == (response.status in (429, 503, 504))


async def test_an_unexpected_error_is_logged_and_not_sent(
    client: httpx.AsyncClient, predictor: LocalPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Cancel:
        raise RuntimeError("a secret")

    predictor.submit = fail  # type: ignore[assignment,method-assign]
    with caplog.at_level(logging.ERROR):
        response = await client.post("/classify", content=RAW, headers=OCTETS)
    assert (response.status_code, response.json()) == (500, {"error": "internal error"})
    assert "a secret" in caplog.text


async def test_every_inference_route_counts_as_load_in_the_alerts_and_on_the_dashboard(
    client: httpx.AsyncClient,
) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    tagged = {
        v2_infer.FAMILY.route if path in v2_infer.PATHS else path
        for path, operations in paths.items()
        for operation in operations.values()
        if "inference" in operation.get("tags", [])
    }
    assert tagged | {f"/{SERVICE}/ModelInfer"} == set(load.ROUTES)
    for place in ("rules/inkserve.yaml", "dashboards/inkserve.json"):
        queries = (ROOT / "helm" / place).read_text().replace('\\"', '"')
        assert set(re.findall(r'route=~"([^"]*)"', queries)) == {"|".join(load.ROUTES)}, place
