"""What /v2/models/stats tells, against what the requests themselves were told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.request import InferenceRequest, InferenceResult
from service.errors import EngineError
from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import infer
from service.settings import Settings
from tests.support.models import add_words, words_body

COUNTED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
UNKNOWN = 99
"""A word that the model fails on."""


@asynccontextmanager
async def serving(models_dir: Path) -> AsyncIterator[tuple[httpx.AsyncClient, LocalPredictor]]:
    limits = Settings(models_dir=models_dir, max_batch_size=8, max_request_rows=40, serve_versions="all")
    metrics = Metrics()
    predictor = LocalPredictor(limits, metrics)
    await predictor.start()
    transport = httpx.ASGITransport(create_app(predictor, limits, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client, predictor
    await predictor.close()


async def statistics(client: httpx.AsyncClient, path: str = "/v2/models/words/stats") -> dict[str, Any]:
    (only,) = (await client.get(path)).json()["model_stats"]
    return dict(only)


@pytest.fixture(scope="module")
def words_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models_dir = tmp_path_factory.mktemp("models")
    add_words(models_dir)
    return models_dir


async def test_a_model_that_was_never_asked_has_zeros(words_dir: Path) -> None:
    async with serving(words_dir) as (client, _):
        told = await statistics(client)
    counts = told.pop("inference_stats")
    assert told == {
        "name": "words",
        "version": "1",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
    }
    assert counts == {name: {"count": 0, "ns": 0} for name in (*COUNTED, "cache_hit", "cache_miss")}


requests = st.lists(
    st.lists(st.one_of(st.integers(0, 7), st.just(UNKNOWN)), min_size=1, max_size=20), min_size=1, max_size=9
)


@settings(max_examples=25)
@given(requests)
def test_the_sums_are_those_of_what_each_request_was_told(words_dir: Path, requests: list[list[int]]) -> None:
    """Requests of any size, which share batches, run over several of them, and fail."""

    async def ask() -> None:
        async with serving(words_dir) as (client, predictor):
            asked = [infer(predictor, request_of(words)) for words in requests]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            told = await statistics(client)
        results = [each for each in outcomes if isinstance(each, InferenceResult)]
        assert all(isinstance(each, InferenceResult | EngineError) for each in outcomes)
        counts = told["inference_stats"]
        assert counts["success"]["count"] == len(results)
        assert counts["fail"]["count"] == sum(UNKNOWN in words for words in requests)
        assert counts["queue"]["count"] == len(requests)
        whole = [words for words in requests if UNKNOWN not in words]
        assert told["inference_count"] >= sum(map(len, whole))
        if len(whole) == len(requests):
            assert told["inference_count"] == sum(map(len, whole))
            for name in ("queue", "compute"):
                seconds = sum(getattr(each, f"{name}_seconds") for each in results)
                counted = counts["compute_infer" if name == "compute" else name]["ns"]
                assert counted == pytest.approx(seconds * 1e9, abs=2)
            total = counts["queue"]["ns"] + counts["compute_infer"]["ns"]
            assert counts["success"]["ns"] == pytest.approx(total, abs=2)

    asyncio.run(ask())


def request_of(words: Sequence[int]) -> InferenceRequest:
    rows = len(words)
    inputs = {"words": np.repeat(np.array([words]), 4, 0).T.copy(), "label": np.ones((rows, 2), np.float32)}
    return InferenceRequest("words", None, inputs, rows, time.monotonic() + 30)


async def test_a_failed_request_counts_as_one_whose_batch_goes_on(words_dir: Path) -> None:
    async with serving(words_dir) as (client, _):
        bodies = [words_body([0, 1]), words_body([UNKNOWN]), words_body([2])]
        answers = await asyncio.gather(*(client.post("/v2/models/words/infer", json=each) for each in bodies))
        told = await statistics(client)
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    counts = told["inference_stats"]
    assert [counts[name]["count"] for name in COUNTED] == [2, 1, 3, 2, 2, 2]
    assert (told["inference_count"], told["execution_count"]) == (3, 1)
    assert counts["fail"]["ns"] > 0
    assert told["last_inference"] == pytest.approx(time.time() * 1e3, abs=60_000)


async def test_each_version_has_its_own(add_classifier: Callable[..., Path], tmp_path: Path) -> None:
    for name, version in (("first-pixel", 1), ("first-pixel", 3), ("another", 2)):
        add_classifier(name, version)
    path = "/v2/models/first-pixel"
    pixels = {"inference-header-content-length": "0"}
    async with serving(tmp_path) as (client, _):
        for asked, rows in (("1", 2), ("3", 5)):
            answer = await client.post(
                f"{path}/versions/{asked}/infer", content=bytes(784 * rows), headers=pixels
            )
            assert answer.status_code == 200
        one = await statistics(client, f"{path}/versions/3/stats")
        both = (await client.get(f"{path}/stats")).json()["model_stats"]
        every = (await client.get("/v2/models/stats")).json()["model_stats"]
        server = (await client.get("/v2")).json()
    assert (one["version"], one["inference_count"], one["execution_count"]) == ("3", 5, 1)
    assert [(each["version"], each["inference_count"]) for each in both] == [("1", 2), ("3", 5)]
    assert sorted((each["name"], each["version"]) for each in every) == [
        ("another", "2"),
        ("first-pixel", "1"),
        ("first-pixel", "3"),
    ]
    assert "statistics" in server["extensions"]
