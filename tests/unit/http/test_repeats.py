"""Seeded requests: ETags, 304, Cache-Control, and one computation for all in flight."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from service.batching.request import Done, InferenceRequest
from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel
from service.settings import Settings
from tests.support.http import OCTETS, settings

SEEDED = "/generate?seed=1&label=7"


class Service(httpx.AsyncClient):
    """A client of a service, and the service's parts."""

    predictor: LocalPredictor
    metrics: Metrics

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"inkserve_{name}", labels) or 0.0

    async def etag(self, url: str, **headers: str) -> str:
        response = await self.get(url, headers=headers)
        assert response.status_code == 200, response.text
        return response.headers["etag"]


def asking(predictor: LocalPredictor, limits: Settings, metrics: Metrics) -> Service:
    app = create_app(predictor, limits, metrics)
    service = Service(transport=httpx.ASGITransport(app), base_url="http://test")
    service.predictor, service.metrics = predictor, metrics
    return service


@pytest.fixture
async def service(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Service]:
    async with asking(predictor, settings(tmp_path), Metrics()) as service:
        yield service


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.parametrize("url", [SEEDED, "/interpolate?seed=1", "/generate?prompt=7t&seed=1"])
async def test_who_has_the_response_gets_304_without_content(service: Service, url: str) -> None:
    first = await service.get(url)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    assert (first.headers["cache-control"], first.headers["vary"]) == ("public, no-cache", "Accept")
    service.predictor.stop_being_ready()
    submitted: list[object] = []
    service.predictor.submit = submitted.append  # type: ignore[assignment,method-assign]
    for sent in (etag, f"W/{etag}", f'"other", {etag}'):
        for method in ("GET", "HEAD"):
            again = await service.request(method, url, headers={"if-none-match": sent})
            assert (again.status_code, again.content) == (304, b"")
            assert (again.headers["etag"], again.headers["cache-control"]) == (etag, "public, no-cache")
            assert not {"content-type", "content-length"} & again.headers.keys()
    assert submitted == []


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.parametrize(
    "other",
    [
        "/generate?seed=2&label=7",
        "/generate?seed=1&label=8",
        "/generate?seed=1&label=7&count=2",
        "/generate?seed=1&label=7&grid=true",
        "/generate?seed=1&label=7&verify=true",
        "/generate?seed=1&label=7&reject=true",
        "/generate?seed=1&prompt=7t",
    ],
)
async def test_another_request_has_another_etag_and_gets_200(service: Service, other: str) -> None:
    etag = await service.etag(SEEDED)
    response = await service.get(other, headers={"if-none-match": etag})
    assert response.status_code == 200
    assert response.headers["etag"].removeprefix("W/") != etag


async def test_the_media_type_is_part_of_the_etag(service: Service) -> None:
    etags = [await service.etag(SEEDED, accept=kind) for kind in ("image/png", OCTETS, "application/json")]
    assert len({*etags}) == 3


async def test_the_same_images_have_the_same_etag_however_they_are_named(service: Service) -> None:
    etag = await service.etag(SEEDED)
    for url in ("/generate?model=ramp&seed=1&digit=7&count=1", f"{SEEDED}&version=1", f"{SEEDED}&grid=false"):
        assert await service.etag(url) == etag
    head = await service.head(SEEDED)
    assert head.headers["etag"] == etag


async def test_a_new_version_of_the_model_changes_the_etag(
    service: Service, add_generator: Callable[..., Path]
) -> None:
    etag = await service.etag(SEEDED)
    add_generator(version=2)
    assert await service.predictor.reload() == []
    response = await service.get(SEEDED, headers={"if-none-match": etag})
    assert response.status_code == 200
    assert response.headers["inkserve-version"] == "2"
    assert response.headers["etag"] != etag


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.parametrize(
    ("query", "etag", "cache"),
    [
        ("seed=1", '"', "public, no-cache"),
        ("seed=1&model=ramp", '"', "public, no-cache"),
        ("seed=1&model=ramp&version=1", '"', "public, max-age=86400"),
        ("seed=1&model=ramp&version=1&verify=true", "W/", "public, no-cache"),
        ("seed=1&model=ramp&version=1&prompt=7", '"', "public, no-cache"),
        ("model=ramp&version=1", "", "no-store"),
    ],
)
async def test_caches_may_keep_what_will_not_change(
    service: Service, query: str, etag: str, cache: str
) -> None:
    response = await service.get(f"/generate?{query}")
    assert response.headers["cache-control"] == cache
    assert response.headers.get("etag", "").startswith(etag)
    assert ("etag" in response.headers) == bool(etag)


@pytest.mark.usefixtures("other_tasks")
async def test_a_star_stands_for_what_will_be_a_200_alone(service: Service) -> None:
    star = {"if-none-match": "*"}
    assert (await service.get(SEEDED, headers=star)).status_code == 304
    assert (await service.get("/generate?seed=1&label=x", headers=star)).status_code == 400
    assert (await service.get("/generate?seed=1&prompt=cat", headers=star)).status_code == 400
    assert (await service.get("/generate?label=7", headers=star)).status_code == 200


async def test_only_get_and_head_are_cached(service: Service) -> None:
    etag = await service.etag(SEEDED)
    posted = await service.post("/generate", json={"seed": 1, "label": "7"}, headers={"if-none-match": etag})
    assert posted.status_code == 200
    assert not {"etag", "cache-control"} & posted.headers.keys()


async def test_without_determinism_an_etag_is_weak_and_with_all_of_it_strong(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    weak: dict[str, list[bool]] = {}
    for determinism in ("off", "generation", "all"):
        limits = settings(tmp_path).model_copy(update={"determinism": determinism})
        async with asking(predictor, limits, Metrics()) as service:
            etags = [await service.etag(url) for url in (SEEDED, f"{SEEDED}&verify=true")]
        weak[determinism] = [etag.startswith("W/") for etag in etags]
    assert weak == {"off": [True, True], "generation": [False, True], "all": [False, False]}


async def test_behind_api_keys_only_the_client_may_keep_it(predictor: LocalPredictor, tmp_path: Path) -> None:
    limits = settings(tmp_path).model_copy(update={"api_keys_file": tmp_path / "keys"})
    async with asking(predictor, limits, Metrics()) as service:
        response = await service.get(SEEDED)
    assert response.headers["cache-control"] == "private, no-cache"


async def test_identical_requests_in_flight_are_computed_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[str] = []
    submit = service.predictor.submit

    def counting(request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        submitted.append(request.model)
        return submit(request, done, admitted=admitted)

    monkeypatch.setattr(service.predictor, "submit", counting)
    urls = [SEEDED] * 5 + ["/interpolate?seed=1"] * 3 + ["/generate?label=7", "/generate?label=7"]
    low = {"inkserve-priority": "low"}
    responses = await asyncio.gather(*(service.get(url) for url in urls), service.get(SEEDED, headers=low))
    assert [response.status_code for response in responses] == [200] * 11
    assert len(submitted) == 1 + 1 + 2 + 1  # seeded, between, two random ones, of low priority
    assert len({response.content for response in responses[:5]}) == 1
    assert len({response.headers["etag"] for response in (*responses[:5], responses[-1])}) == 1
    assert service.value("coalesced_requests_total", model="ramp") == 4 + 2
    counted = {"route": "/generate", "model": "ramp", "status": "200"}
    assert service.value("requests_total", **counted) == 8


async def test_a_verified_image_is_read_once_for_all(service: Service) -> None:
    responses = await asyncio.gather(*(service.get(f"{SEEDED}&verify=true") for _ in range(3)))
    assert {response.headers["inkserve-read"] for response in responses} == {
        responses[0].headers["inkserve-read"]
    }
    agreed = service.value("generator_agreement_total", model="ramp", result="agree")
    assert agreed + service.value("generator_agreement_total", model="ramp", result="disagree") == 1


@pytest.mark.usefixtures("other_tasks")
async def test_what_fails_fails_for_all_and_is_tried_again(service: Service) -> None:
    prompts = await asyncio.gather(*(service.get("/generate?seed=1&prompt=cat") for _ in range(3)))
    assert [response.status_code for response in prompts] == [400] * 3
    assert "cache-control" not in prompts[0].headers
