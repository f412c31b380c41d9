"""The shipped generators and their encoder, over real sockets in the split form."""

import asyncio
import io
import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import numpy as np
import pytest
from PIL import Image

from tests.support.live import RAW, RAW_ANSWER, ROOT, Response, Service, connected, serving

MODELS = ("cnn", "gan", "vae", "vae-encoder")
DIGITS = (ROOT / "tests" / "digits" / "digits.raw").read_bytes()
JSON = {"accept": "application/json"}
AS_RAW = {"accept": "application/octet-stream"}
FOUND_SECONDS = 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker and an engine over four of the shipped models."""
    models = tmp_path_factory.mktemp("models")
    for name in MODELS:
        (models / name).symlink_to(ROOT / "models" / name)
    with serving("--workers", "1", "--models-dir", str(models), "--default-classifier", "cnn") as service:
        yield service


async def ask(
    service: Service, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Response:
    async with connected(service.port) as connection:
        response = await connection.ask(method, path, body, headers)
    assert response.status == 200, response.body[:300]
    return response


async def metric(service: Service, series: str) -> float:
    """A series' value: 0 if it is not there. The worker pushes its counts twice a second."""
    text = (await ask(service, "GET", "/metrics")).body.decode()
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(series)), 0.0)


async def reaches(service: Service, series: str, value: float) -> None:
    until = time.monotonic() + FOUND_SECONDS
    while (seen := await metric(service, series)) < value:
        assert time.monotonic() < until, f"{series} is {seen}, expected {value}"
        await asyncio.sleep(0.1)
    assert seen == value


def pixels(response: Response) -> np.ndarray:
    shape = [int(size) for size in response.headers["inkserve-shape"].split(",")]
    return np.frombuffer(response.body, np.uint8).reshape(shape)


async def labels(service: Service, images: np.ndarray) -> list[str]:
    answer = await ask(service, "POST", "/classify", images.tobytes(), RAW)
    return [each["label"] for each in json.loads(answer.body)["predictions"]]


@pytest.mark.parametrize("model", ["gan", "vae"])
async def test_a_seed_gives_the_same_images_in_batches_of_every_size(service: Service, model: str) -> None:
    detail = json.loads((await ask(service, "GET", f"/models/{model}")).body)
    sizes = {*detail["batch_sizes"], *detail["slow_batch_sizes"], *detail["differing_batch_sizes"]}
    assert {1, 2, 4, 8, 16, 32} <= sizes
    path = f"/generate?model={model}&seed=8&count="
    many = pixels(await ask(service, "GET", f"{path}40", headers=AS_RAW))
    for count in (1, 2, 4, 7, 16, 32):
        few = pixels(await ask(service, "GET", f"{path}{count}", headers=AS_RAW))
        assert np.array_equal(few, many[:count])


async def test_digits_come_back_from_their_latents(service: Service) -> None:
    encoded = json.loads((await ask(service, "POST", "/encode", DIGITS, RAW)).body)
    assert (encoded["model"], encoded["classifier"]) == ("vae-encoder", "cnn")
    assert encoded["labels"] == [*"0123456789"]
    z = np.array(encoded["latents"], np.float32)
    assert z.shape == (10, 32)
    assert np.abs(z).max() < 6  # z ~ N(0, 1): the flow is in the graph
    body = json.dumps({"latents": encoded["latents"], "labels": encoded["labels"]}).encode()
    decoded = await ask(service, "POST", "/decode", body, {"content-type": "application/json", **AS_RAW})
    reconstructed = await ask(service, "POST", "/reconstruct", DIGITS, RAW_ANSWER)
    assert np.array_equal(pixels(decoded), pixels(reconstructed))
    originals = np.frombuffer(DIGITS, np.uint8).reshape(10, 28, 28).astype(float)
    nearest = np.abs(pixels(decoded)[:, None] - originals).mean((2, 3)).argmin(1)
    assert nearest.tolist() == [*range(10)]
    assert sum(a == b for a, b in zip(await labels(service, pixels(decoded)), "0123456789", strict=True)) >= 9
    photo = (ROOT / "tests" / "digits" / "seven.jpg").read_bytes()
    seven = await ask(service, "POST", "/reconstruct", photo, {"content-type": "image/jpeg", **AS_RAW})
    assert seven.headers["inkserve-labels"] == "7"
    assert await labels(service, pixels(seven)) == ["7"]


@pytest.mark.parametrize("model", ["vae", "gan"])
async def test_an_interpolation_begins_and_ends_with_generated_digits(service: Service, model: str) -> None:
    url = f"/interpolate?model={model}&seed=1&from=3&to=8&steps=9"
    way = pixels(await ask(service, "GET", url, headers=AS_RAW))
    read = await labels(service, way)
    assert (read[0], read[-1]) == ("3", "8")
    first = await ask(service, "GET", f"/generate?model={model}&seed=1&label=3", headers=AS_RAW)
    last = await ask(service, "GET", f"/generate?model={model}&seed=1&label=8&count=2", headers=AS_RAW)
    assert np.array_equal(way[[0, -1]], np.stack([pixels(first)[0], pixels(last)[1]]))
    for kind, form in (("image/webp", "WEBP"), ("image/apng", "PNG")):
        moving = Image.open(io.BytesIO((await ask(service, "GET", url, headers={"accept": kind})).body))
        assert (moving.format, getattr(moving, "n_frames", 1)) == (form, 16)


async def test_what_the_classifier_reads_is_told_counted_and_rejected(service: Service) -> None:
    path = "/generate?model=vae&count=256&seed=7"
    plain = json.loads((await ask(service, "GET", f"{path}&verify=true", headers=JSON)).body)
    verified = plain["verification"]
    assert verified["agreement"] == verified["agreeing"] / 256 > 0.95
    misread = [each for each in plain["images"] if each["read"] != each["label"]]
    assert len(misread) == 256 - verified["agreeing"] > 0  # else this test tells nothing
    again = await ask(service, "GET", f"{path}&reject=true", headers=AS_RAW)
    assert again.headers["inkserve-agreement"] == "256/256"
    untouched = [row for row, each in enumerate(plain["images"]) if each["read"] == each["label"]]
    images = pixels(await ask(service, "GET", path, headers=AS_RAW))
    assert np.array_equal(pixels(again)[untouched], images[untouched])
    told = json.loads((await ask(service, "GET", f"{path}&reject=true", headers=JSON)).body)["verification"]
    drawn = 256 + 2 * told["draws"]
    agree = 'inkserve_generator_agreement_total{model="vae",result="agree"}'
    disagree = 'inkserve_generator_agreement_total{model="vae",result="disagree"}'
    await reaches(service, agree, verified["agreeing"] + 2 * 256)
    await reaches(service, disagree, drawn - verified["agreeing"] - 2 * 256)


async def test_identical_requests_are_computed_once_even_if_the_first_client_leaves(service: Service) -> None:
    path = "/generate?model=gan&count=1024&seed=3&label=5"
    rows = 'inkserve_rows_total{model="gan",version="1"}'
    joined = 'inkserve_coalesced_requests_total{model="gan"}'
    before = await metric(service, rows)
    async with AsyncExitStack() as stack:
        others = []
        async with connected(service.port) as first:
            await first.send("GET", path, headers=AS_RAW)
            for _ in range(4):
                others.append(await stack.enter_async_context(connected(service.port)))
                await others[-1].send("GET", path, headers=AS_RAW)
        answers = [await other.receive() for other in others]
    assert [answer.status for answer in answers] == [200] * 4
    assert len({answer.body for answer in answers}) == 1
    await reaches(service, joined, 4)
    assert await metric(service, rows) == before + 1024


async def test_who_has_the_images_is_not_sent_them_again(service: Service) -> None:
    path = "/generate?model=vae&version=1&seed=11&label=7"
    response = await ask(service, "GET", path)
    assert response.headers["cache-control"] == "public, max-age=86400"
    has = {"if-none-match": response.headers["etag"]}
    async with connected(service.port) as connection:
        cached = await connection.ask("GET", path, headers=has)
        other = await connection.ask("GET", f"{path}&count=2", headers=has)
    assert (cached.status, cached.body, other.status) == (304, b"", 200)
