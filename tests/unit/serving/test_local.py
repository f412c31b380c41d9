"""The models folder: loading, refusing, reloading, with real sessions."""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.errors import (
    EngineError,
    InkserveError,
    InvalidInput,
    ManifestError,
    ModelNotFound,
    PayloadTooLarge,
    RepositoryError,
    ShuttingDown,
)
from service.models.folder import Scan, scan
from service.models.manifest import MANIFEST_FILE, MODEL_FILE
from service.models.metadata import PREFIX
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import infer
from service.settings import Settings
from tests.support.models import LATENT, mean_classifier
from tests.support.requests import request_for

Open = Callable[..., Awaitable[LocalPredictor]]


@pytest.fixture
async def open_predictor(tmp_path: Path) -> AsyncIterator[Open]:
    """Starts a predictor over `tmp_path`."""
    opened: list[LocalPredictor] = []

    async def start(**settings: Any) -> LocalPredictor:
        predictor = LocalPredictor(
            Settings(models_dir=tmp_path, max_batch_size=8, **settings), Metrics(), second_look_seconds=0
        )
        opened.append(predictor)
        await predictor.start()
        return predictor

    yield start
    for predictor in opened:
        await predictor.close()


def images(*first_pixels: int) -> np.ndarray:
    batch = np.zeros((len(first_pixels), 28, 28), np.uint8)
    batch[:, 0, 0] = first_pixels
    return batch


async def classify(predictor: LocalPredictor, *first_pixels: int, version: int | None = None) -> list[int]:
    inputs = {"images": images(*first_pixels)}
    result = await infer(predictor, request_for("first-pixel", version, inputs, time.monotonic() + 30))
    return [int(label) for label in result.outputs[0].argmax(axis=1)]


async def test_every_model_is_served(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    add_generator()
    predictor = await open_predictor()
    assert predictor.ready()
    assert [info.manifest.name for info in predictor.models()] == ["first-pixel", "ramp"]
    assert await classify(predictor, *range(10)) == list(range(10))


async def test_answers_never_mix_between_callers(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    predictor = await open_predictor()
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, 10, size).tolist() for size in rng.integers(1, 20, 300)]
    assert await asyncio.gather(*(classify(predictor, *pixels) for pixels in requests)) == requests


async def test_on_a_cpu_a_graph_with_convolutions_runs_in_small_batches(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    mean_classifier(tmp_path)
    predictor = LocalPredictor(Settings(models_dir=tmp_path, intra_op_threads=3), Metrics())
    await predictor.start()
    rows = {"images": np.repeat(np.arange(100, dtype=np.uint8), 784).reshape(100, 28, 28)}
    plain, convolved = [
        await infer(predictor, request_for(name, None, rows, time.monotonic() + 30))
        for name in ("first-pixel", "mean")
    ]
    assert plain.batch_rows == 100
    assert convolved.batch_rows == 100 - 2 * 3 * 16  # of the last of three batches
    assert np.allclose(convolved.outputs[0][:, 0] * 255, np.arange(100), atol=1e-3)
    await predictor.close()


@pytest.mark.parametrize(("which", "versions"), [("latest", [10]), ("all", [2, 10])])
async def test_the_latest_version_is_the_highest_number(
    add_classifier: Callable[..., Path], open_predictor: Open, which: str, versions: list[int]
) -> None:
    add_classifier(version=2)
    add_classifier(version=10)
    predictor = await open_predictor(serve_versions=which)
    assert predictor.models().versions("first-pixel") == versions
    assert predictor.models().find("first-pixel").manifest.version == 10


async def test_a_graph_alone_is_served_with_its_own_labels(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    folder = add_classifier()
    (folder / MANIFEST_FILE).unlink()
    for labels in ("abcdefghij", "klmnopqrst"):
        graph = onnx.load(folder / MODEL_FILE)
        del graph.metadata_props[:]
        for name, value in (("task", "classification"), ("labels", json.dumps([*labels]))):
            graph.metadata_props.add(key=PREFIX + name, value=value)
        onnx.save(graph, folder / MODEL_FILE)
        if labels[0] == "a":
            predictor = await open_predictor()
        else:
            assert await predictor.reload() == []
        assert predictor.models().find("first-pixel").manifest.labels == tuple(labels)
        assert await classify(predictor, *range(10)) == list(range(10))


def test_folders_that_are_not_models_are_passed_over(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    folder = add_classifier()
    (tmp_path / ".publishing").mkdir()
    (tmp_path / "_drafts").mkdir()
    (tmp_path / "README.md").write_text("models")
    (tmp_path / "first-pixel" / "notes").mkdir()
    assert scan(tmp_path) == Scan({"first-pixel": {1: folder}})


async def test_an_empty_or_missing_folder_stops_the_start(open_predictor: Open, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no models"):
        await open_predictor()
    with pytest.raises(RepositoryError, match="none is missing"):
        scan(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert scan(tmp_path) == Scan({})


def damage_graph(folder: Path) -> None:
    with (folder / MODEL_FILE).open("ab") as file:
        file.write(b"x")


def remove_graph(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()


def rename_input(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["inputs"][0]["name"] = "pictures"
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (damage_graph, RepositoryError, r"model\.onnx has sha256 [0-9a-f]{64}, its manifest expects"),
        (remove_graph, RepositoryError, r"model\.onnx is missing"),
        (rename_input, ManifestError, r"first-pixel/1: the graph has the inputs \['images'\]"),
    ],
)
async def test_a_version_that_cannot_be_trusted_stops_the_start(
    add_classifier: Callable[..., Path],
    open_predictor: Open,
    damage: Callable[[Path], None],
    error: type[InkserveError],
    message: str,
) -> None:
    damage(add_classifier())
    with pytest.raises(error, match=message):
        await open_predictor()


async def test_a_gpu_that_is_not_there_stops_the_start(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    with pytest.raises(EngineError, match="provider cuda"):
        await open_predictor(provider="cuda", device_id=99)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, InvalidInput, r"inputs are \[\], model ramp expects \['z', 'label'\]"),
        ({"z": (2, LATENT), "x": [0, 0]}, InvalidInput, r"inputs are \['x', 'z'\]"),
        ({"z": (2, LATENT), "label": [0]}, InvalidInput, "inputs have different numbers of rows"),
        ({"z": (2, LATENT + 1), "label": [0, 0]}, InvalidInput, r"z has shape \[2, 7\], expected \[-1, 6\]"),
        ({"z": (2, LATENT), "label": [3, 10]}, InvalidInput, r"label\[1\] is 10, expected 0\.\.9"),
        ({"z": (2, LATENT), "label": [-1, 0]}, InvalidInput, r"label\[0\] is -1, expected 0\.\.9"),
        ({"z": (0, LATENT), "label": []}, InvalidInput, "z has no rows, expected at least 1"),
        ({"z": (5, LATENT), "label": [0] * 5}, PayloadTooLarge, "request has 5 rows, expected at most 4"),
    ],
)
async def test_an_unfit_request_is_rejected_before_the_queue(
    add_generator: Callable[..., Path],
    open_predictor: Open,
    inputs: dict[str, object],
    error: type[InkserveError],
    message: str,
) -> None:
    add_generator()
    predictor = await open_predictor(max_request_rows=4)
    arrays = {
        name: np.zeros(value, np.float32) if isinstance(value, tuple) else np.array(value, np.int64)
        for name, value in inputs.items()
    }
    with pytest.raises(error, match=message):
        await infer(predictor, request_for("ramp", None, arrays, time.monotonic() + 30))


async def test_a_wrong_dtype_is_refused(add_classifier: Callable[..., Path], open_predictor: Open) -> None:
    add_classifier()
    predictor = await open_predictor()
    with pytest.raises(InvalidInput, match="images has dtype int64, expected uint8"):
        await infer(
            predictor, request_for("first-pixel", None, {"images": np.zeros((1, 28, 28), np.int64)}, 1e12)
        )


async def test_the_log_names_a_model_without_a_manifest(
    open_predictor: Open, add_classifier: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    add_classifier("described")
    (add_classifier("bare") / MANIFEST_FILE).unlink()
    caplog.set_level(logging.INFO)
    await open_predictor()
    loaded = [line for line in caplog.messages if line.startswith("loaded ")]
    assert sorted(loaded) == ["loaded bare version 1, without a manifest", "loaded described version 1"]


async def test_an_unknown_model_names_the_known_ones(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    models = (await open_predictor()).models()
    with pytest.raises(ModelNotFound, match="model 'x' is unknown, expected one of first-pixel"):
        models.find("x")
    with pytest.raises(ModelNotFound, match="model 'first-pixel' has no version 7, expected one of 1"):
        models.find("first-pixel", 7)
    with pytest.raises(ModelNotFound, match="no model for generation is loaded"):
        models.default("generation")


async def test_the_same_latents_give_the_same_bytes_in_any_company(
    add_generator: Callable[..., Path], open_predictor: Open
) -> None:
    add_generator()
    predictor = await open_predictor(fixed_batch_size=4)
    (info,) = predictor.models()
    assert sorted(info.batch_sizes + info.differing_batch_sizes) == [1, 2, 3, 4, 6, 8]
    rng = np.random.default_rng(0)

    async def generate(z: np.ndarray) -> np.ndarray:
        inputs = {"z": z, "label": np.arange(len(z)) % 10}
        return (await infer(predictor, request_for("ramp", None, inputs, 1e12))).outputs[0]

    z = rng.normal(size=(5, LATENT)).astype(np.float32)
    alone = await generate(z)
    for _ in range(20):
        others = [rng.normal(size=(n, LATENT)).astype(np.float32) for n in rng.integers(1, 12, 6)]
        crowd = [generate(other) for other in others]
        crowd.insert(int(rng.integers(0, 7)), generate(z))
        answers = await asyncio.gather(*crowd)
        assert any(len(answer) == 5 and np.array_equal(answer, alone) for answer in answers)


async def test_reload_serves_a_new_version_and_drops_a_removed_model(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    generator = add_generator()
    predictor = await open_predictor()
    add_classifier(version=2)
    shutil.rmtree(generator.parent)
    assert await predictor.reload() == []
    assert [(i.manifest.name, i.manifest.version) for i in predictor.models()] == [("first-pixel", 2)]
    assert await classify(predictor, 4) == [4]


async def test_a_bad_version_never_replaces_a_good_one(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    predictor = await open_predictor()
    damage_graph(add_classifier(version=2))
    (problem,) = await predictor.reload()
    assert "2/model.onnx has sha256" in problem
    assert predictor.models().find("first-pixel").manifest.version == 1
    assert await classify(predictor, 4) == [4]


async def test_no_request_is_lost_while_versions_are_swapped(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    predictor = await open_predictor()
    answered = 0
    reloading = True

    async def ask() -> None:
        nonlocal answered
        while reloading:
            assert await classify(predictor, 1, 2, 3) == [1, 2, 3]
            answered += 1

    asking = [asyncio.ensure_future(ask()) for _ in range(8)]
    for version in (2, 3, 4):
        add_classifier(version=version)
        assert await predictor.reload() == []
    reloading = False
    await asyncio.gather(*asking)
    assert answered > 0
    assert predictor.models().find("first-pixel").manifest.version == 4


@pytest.mark.slow
async def test_a_reload_waits_until_the_last_one_has_freed_what_it_replaced(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier(version=1)
    predictor = LocalPredictor(Settings(models_dir=tmp_path, max_batch_delay_seconds=0.5), Metrics())
    await predictor.start()
    waiting = asyncio.ensure_future(classify(predictor, 7))  # in the first version's queue
    await asyncio.sleep(0)
    add_classifier(version=2)
    reloads = [asyncio.ensure_future(predictor.reload()) for _ in range(2)]
    while predictor.models().versions("first-pixel") != [2]:
        await asyncio.sleep(0.01)
    done, _ = await asyncio.wait([waiting, *reloads], return_when=asyncio.FIRST_COMPLETED)
    assert waiting in done
    assert await waiting == [7]
    assert await asyncio.gather(*reloads) == [[], []]
    await predictor.close()


async def test_an_unchanged_model_is_not_loaded_again(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    metrics = Metrics()
    predictor = LocalPredictor(Settings(models_dir=tmp_path, max_batch_size=8), metrics)
    await predictor.start()
    await predictor.reload()
    labels = {"model": "first-pixel", "result": "loaded"}
    assert metrics.registry.get_sample_value("inkserve_model_loads_total", labels) == 1
    await predictor.close()


async def test_after_close_nothing_is_accepted(
    add_classifier: Callable[..., Path], open_predictor: Open
) -> None:
    add_classifier()
    predictor = await open_predictor()
    await predictor.close()
    assert not predictor.ready()
    with pytest.raises(ShuttingDown):
        await classify(predictor, 1)


async def test_batches_are_counted(add_classifier: Callable[..., Path], tmp_path: Path) -> None:
    add_classifier()
    metrics = Metrics()
    predictor = LocalPredictor(Settings(models_dir=tmp_path, max_batch_size=16), metrics)
    await predictor.start()
    await classify(predictor, *range(9))
    await asyncio.sleep(0)
    sample = metrics.registry.get_sample_value
    assert sample("inkserve_rows_total", {"model": "first-pixel", "version": "1"}) == 9
    assert sample("inkserve_padding_rows_total", {"model": "first-pixel", "version": "1"}) == 1
    idle = {"model": "first-pixel", "version": "1", "reason": "idle"}
    assert sample("inkserve_batches_total", idle) == 1
    assert sample("inkserve_queue_seconds_count", {"model": "first-pixel", "version": "1"}) == 1
    assert sample("inkserve_request_rows_sum", {"model": "first-pixel", "version": "1"}) == 9
    assert sample("inkserve_rows_waiting", {"model": "first-pixel"}) == 0
    await predictor.close()


async def test_what_waits_is_shown_for_all_versions_of_a_model(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    for version in (1, 2):
        add_classifier(version=version)
    metrics = Metrics()
    settings = Settings(
        models_dir=tmp_path, serve_versions="all", max_batch_size=4, max_batch_delay_seconds=10
    )
    predictor = LocalPredictor(settings, metrics)
    await predictor.start()

    def waiting() -> tuple[float | None, float | None]:
        sample, labels = metrics.registry.get_sample_value, {"model": "first-pixel"}
        return sample("inkserve_rows_waiting", labels), sample("inkserve_requests_waiting", labels)

    assert waiting() == (0, 0)
    sent = ((1, 1), (2, 1), (3, 2))  # rows, version
    calls = [classify(predictor, *range(rows), version=version) for rows, version in sent]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    assert waiting() == (6, 3)
    assert await classify(predictor, 5, version=1) == await classify(predictor, 5, version=2) == [5]
    assert await asyncio.gather(*tasks) == [[0], [0, 1], [0, 1, 2]]
    assert waiting() == (0, 0)
    await predictor.close()
