"""The setting `prefer`: a model's variant on fewer bits answers for it."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import OCTETS, RAW, settings
from tests.support.live import connected, serving

RAW_BODY = {"content-type": OCTETS}
RAW_BOTH = {"content-type": OCTETS, "accept": OCTETS}


@pytest.fixture
async def predictor(
    tmp_path: Path, add_classifier: Callable[..., Path], add_generator: Callable[..., Path]
) -> AsyncIterator[LocalPredictor]:
    """Models with variants: of the latest version, of an older one, and one that has other labels."""
    for version in (1, 2):
        add_classifier("first-pixel", version)
    add_classifier("first-pixel-int8", 2)
    add_classifier("old", 2)
    add_classifier("old-int8", 1)
    add_classifier("other")
    add_classifier("other-int8", labels=tuple("abcdefghij"))
    add_generator()
    add_generator("ramp-fp16")
    limits = settings(tmp_path).model_copy(update={"serve_versions": "all"})
    predictor = LocalPredictor(limits, Metrics(), second_look_seconds=0)
    await predictor.start()
    yield predictor
    await predictor.close()


def client(predictor: LocalPredictor, models_dir: Path, prefer: str | None) -> httpx.AsyncClient:
    app = create_app(predictor, settings(models_dir).model_copy(update={"prefer": prefer}), Metrics())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize(
    ("prefer", "query", "answered"),
    [
        (None, "", ("first-pixel", 2)),
        ("int8", "", ("first-pixel-int8", 2)),
        ("fp16,int8", "?model=first-pixel", ("first-pixel-int8", 2)),
        ("fp16", "", ("first-pixel", 2)),
        ("int8", "?model=first-pixel&version=2", ("first-pixel", 2)),
        ("int8", "?model=first-pixel-int8", ("first-pixel-int8", 2)),
        ("int8", "?model=old", ("old", 2)),
        ("int8", "?model=other", ("other", 1)),
    ],
)
async def test_the_answer_names_the_model_that_gave_it(
    prefer: str | None, query: str, answered: tuple[str, int], predictor: LocalPredictor, tmp_path: Path
) -> None:
    async with client(predictor, tmp_path, prefer) as asking:
        told = (await asking.post(f"/classify{query}", content=RAW, headers=RAW_BODY)).json()
        assert (told["model"], told["version"]) == answered
        raw = await asking.post(f"/classify{query}", content=RAW, headers=RAW_BOTH)
        assert (raw.headers["inkserve-model"], raw.headers["inkserve-version"]) == (
            answered[0],
            str(answered[1]),
        )


async def test_generators_have_variants_too(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with client(predictor, tmp_path, "fp16") as asking:
        drawn = await asking.get("/generate?label=3&seed=1")
        assert (drawn.status_code, drawn.headers["inkserve-model"]) == (200, "ramp-fp16")
        pinned = await asking.get("/generate?label=3&seed=1&model=ramp&version=1")
        assert pinned.headers["inkserve-model"] == "ramp"


async def test_the_open_inference_protocol_has_variants_too(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    rows = {"inference-header-content-length": "0"}
    async with client(predictor, tmp_path, "int8") as asking:
        for path, answered in (
            ("first-pixel", "first-pixel-int8"),
            ("first-pixel/versions/2", "first-pixel"),
        ):
            told = await asking.post(f"/v2/models/{path}/infer", content=RAW, headers=rows)
            assert told.headers["inference-header-content-length"]
            assert f'"model_name":"{answered}"'.encode() in told.content


async def test_the_list_tells_who_answers(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with client(predictor, tmp_path, "int8,fp16") as asking:
        listed = {
            each["name"]: each["answered_by"] for each in (await asking.get("/models")).json()["models"]
        }
        assert listed == {
            "first-pixel": "first-pixel-int8",
            "first-pixel-int8": "first-pixel-int8",
            "old": "old",
            "old-int8": "old-int8",
            "other": "other",
            "other-int8": "other-int8",
            "ramp": "ramp-fp16",
            "ramp-fp16": "ramp-fp16",
        }
        assert (await asking.get("/models/ramp")).json()["answered_by"] == "ramp-fp16"
    async with client(predictor, tmp_path, None) as asking:
        models = (await asking.get("/models")).json()["models"]
        assert all(each["answered_by"] == each["name"] for each in models)


async def test_a_variant_that_goes_is_replaced_by_its_model(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    async with client(predictor, tmp_path, "int8") as asking:
        shutil.rmtree(tmp_path / "first-pixel-int8")
        assert await predictor.reload() == []
        told = (await asking.post("/classify", content=RAW, headers=RAW_BODY)).json()
        assert told["model"] == "first-pixel"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_variant_answers_on_the_fast_path_of_one_process_and_of_several(
    workers: str, tmp_path: Path, add_classifier: Callable[..., Path]
) -> None:
    add_classifier("first-pixel")
    add_classifier("first-pixel-int8")
    flags = ("--models-dir", str(tmp_path), "--workers", workers, "--prefer", "int8")
    with serving(*flags) as service:
        async with connected(service.port) as connection:
            for _ in range(2):  # the second head is known
                answer = await connection.ask("POST", "/classify", RAW, RAW_BODY)
                assert json.loads(answer.body)["model"] == "first-pixel-int8"
