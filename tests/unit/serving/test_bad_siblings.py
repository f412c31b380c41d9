"""One bad folder or version never touches the others, at startup and at a reload."""

import json
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import RepositoryError
from service.models.folder import CARD_FILE
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, read_manifest
from service.models.metadata import PREFIX
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.models import IMAGES, PROBABILITIES, make_model, write_model


def load(tmp_path: Path, metrics: Metrics | None = None, **settings: Any) -> LocalPredictor:
    return LocalPredictor(
        Settings(models_dir=tmp_path, max_batch_size=4, **settings),
        metrics or Metrics(),
        second_look_seconds=0,
    )


@pytest.fixture
async def good(tmp_path: Path, add_classifier: Callable[..., Path]) -> AsyncIterator[LocalPredictor]:
    """A predictor that serves good/1 once it is started."""
    add_classifier("good")
    predictor = load(tmp_path)
    yield predictor
    await predictor.close()


def served(predictor: LocalPredictor) -> list[tuple[str, int]]:
    return [(info.manifest.name, info.manifest.version) for info in predictor.models()]


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def damaged_manifest(damage: Callable[[Path], object]) -> Callable[[Path, Callable[..., Path]], object]:
    return lambda _, add: damage(add("bad") / MANIFEST_FILE)


def damaged_graph(damage: Callable[[Path], object]) -> Callable[[Path, Callable[..., Path]], object]:
    return lambda _, add: damage(add("bad") / MODEL_FILE)


def as_one_row(folder: Path) -> None:
    """Leave a graph alone whose batch holds one row."""
    graph = onnx.load(folder / MODEL_FILE)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, folder / MODEL_FILE)
    (folder / MANIFEST_FILE).unlink()


def as_bare_graph(folder: Path, labels: str) -> None:
    """Leave only the graph, with these labels in its metadata."""
    (folder / MANIFEST_FILE).unlink()
    graph = onnx.load(folder / MODEL_FILE)
    for name, value in (("task", "classification"), ("labels", labels)):
        graph.metadata_props.add(key=PREFIX + name, value=value)
    onnx.save(graph, folder / MODEL_FILE)


FAILED: dict[str, tuple[Callable[[Path, Callable[..., Path]], object], str]] = {
    "half a manifest": (damaged_manifest(lambda p: p.write_bytes(p.read_bytes()[:40])), "is not a manifest"),
    "no manifest, and a graph of one row": (lambda _, add: as_one_row(add("bad")), "is missing"),
    "bad JSON in the metadata of a bare graph": (
        lambda _, add: as_bare_graph(add("bad"), '["0",'),
        "expected a JSON list of texts",
    ),
    "too few labels in the metadata of a bare graph": (
        lambda _, add: as_bare_graph(add("bad"), '["0", "1"]'),
        "labels names 2 classes, expected 10",
    ),
    "a manifest that is a folder": (damaged_manifest(as_folder), "is not a regular file"),
    "a manifest that is a FIFO": (damaged_manifest(as_fifo), "is not a regular file"),
    "a manifest that links to itself": (
        damaged_manifest(as_loop),
        "cannot be read|is missing",
    ),
    "a manifest of random bytes": (
        damaged_manifest(lambda p: p.write_bytes(b"\xff\xfe\x00\xd8x")),
        "manifest",
    ),
    "a NUL in the manifest": (damaged_manifest(lambda path: path.write_bytes(b"\0")), "is not a manifest"),
    "a metric that is not a number": (
        damaged_manifest(
            lambda p: p.write_text(p.read_text().replace('"metrics":{}', '"metrics":{"a":NaN}'))
        ),
        "metrics.a",
    ),
    "no graph": (damaged_graph(lambda path: path.unlink()), "is missing"),
    "a graph that is a folder": (damaged_graph(as_folder), "is not a regular file"),
    "a graph that is a FIFO": (damaged_graph(as_fifo), "is not a regular file"),
    "an empty graph": (damaged_graph(lambda path: path.write_bytes(b"")), "has sha256"),
    "leading zeros": (lambda root, add: add("bad").rename(root / "bad" / "01"), "expected bad/1"),
    "a name that no model has": (lambda root, add: add("bad").parent.rename(root / "my bad"), "is named"),
    "a name that is not Unicode": (
        lambda root, add: add("bad").parent.rename(root / os.fsdecode(b"\xff")),
        "is named",
    ),
}


@pytest.mark.parametrize("kind", FAILED)
async def test_a_bad_sibling_fails_alone(
    tmp_path: Path,
    good: LocalPredictor,
    add_classifier: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    make, reason = FAILED[kind]
    make(tmp_path, add_classifier)
    await good.start()
    for _ in range(2):
        assert served(good) == [("good", 1)]
        assert good.ready()
        (failure,) = good.models().failures
        assert failure.name.encode()
        assert re.search(reason, failure.reason)
        assert await good.reload() == [failure.reason]
    assert sum("was not loaded" in record.getMessage() for record in caplog.records) == 1


SKIPPED: dict[str, Callable[[Path], object]] = {
    "an upload that made the model's folder": lambda root: (root / "new").mkdir(),
    "an upload that made the version's folder": lambda root: (root / "good" / "2").mkdir(),
    "lost+found": lambda root: (root / "lost+found" / "1").mkdir(parents=True),
    "@eaDir": lambda root: (root / "@eaDir" / "1").mkdir(parents=True),
    "docs": lambda root: (root / "docs" / "img").mkdir(parents=True),
    "a version that is a file": lambda root: (root / "good" / "2").write_text("x"),
    "a link to nowhere": lambda root: (root / "link").symlink_to(root / "nowhere"),
}


@pytest.mark.parametrize("kind", SKIPPED)
async def test_what_is_no_model_is_skipped(tmp_path: Path, good: LocalPredictor, kind: str) -> None:
    SKIPPED[kind](tmp_path)
    await good.start()
    assert await good.reload() == []
    assert (served(good), good.models().failures) == ([("good", 1)], ())


def rewritten(encode: Callable[[str], bytes]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        path = folder / MANIFEST_FILE
        path.write_bytes(encode(path.read_text()))

    return rewrite


def with_capitals(text: str) -> bytes:
    content = json.loads(text)
    return json.dumps(content | {"sha256": content["sha256"].upper()}).encode()


ACCEPTED: dict[str, Callable[[Path], object]] = {
    "a byte order mark": rewritten(lambda text: text.encode("utf-8-sig")),
    "UTF-16 with a mark": rewritten(lambda text: text.encode("utf-16")),
    "big-endian UTF-16": rewritten(lambda text: b"\xfe\xff" + text.encode("utf-16-be")),
    "capital hexadecimal digits": rewritten(with_capitals),
    "a card in latin-1": lambda folder: (folder / CARD_FILE).write_bytes("# é".encode("latin-1")),
    "a card that is a folder": lambda folder: (folder / CARD_FILE).mkdir(),
}


@pytest.mark.parametrize("kind", ACCEPTED)
async def test_what_windows_writes_is_accepted(tmp_path: Path, good: LocalPredictor, kind: str) -> None:
    ACCEPTED[kind](tmp_path / "good" / "1")
    await good.start()
    assert served(good) == [("good", 1)]


async def test_any_exception_is_contained(
    tmp_path: Path, add_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that nobody foresaw, injected where every file is hashed."""
    from service.models import manifest, verification

    metrics = Metrics()
    for name in ("bad", "good"):
        add_classifier(name)

    def sha256_of(path: Path) -> str:
        if "bad" in path.parts:
            raise ZeroDivisionError("injected")
        return manifest.sha256_of(path)

    monkeypatch.setattr(verification, "sha256_of", sha256_of)
    predictor = load(tmp_path, metrics)
    await predictor.start()
    (failure,) = predictor.models().failures
    assert (failure.name, failure.version, failure.reason) == ("bad", 1, "ZeroDivisionError: injected")
    assert served(predictor) == [("good", 1)]
    labels = {"model": "bad", "result": "failed"}
    assert metrics.registry.get_sample_value("inkserve_model_loads_total", labels) == 1
    await predictor.close()


async def test_the_highest_good_version_is_served(
    good: LocalPredictor, add_classifier: Callable[..., Path]
) -> None:
    (add_classifier("good", 3) / MODEL_FILE).write_bytes(b"x")
    add_classifier("good", 2)
    await good.start()
    assert served(good) == [("good", 2)]


async def test_a_bad_version_is_no_order_to_go_back(
    tmp_path: Path, good: LocalPredictor, add_classifier: Callable[..., Path]
) -> None:
    second = add_classifier("good", 2)
    await good.start()
    (second / MODEL_FILE).write_bytes(b"x")
    (problem,) = await good.reload()
    assert "has sha256" in problem
    assert served(good) == [("good", 2)]
    shutil.rmtree(second)
    (add_classifier("good", 3) / MANIFEST_FILE).write_text("{")
    await good.reload()
    assert served(good) == [("good", 2)]
    (tmp_path / "good" / "3" / MANIFEST_FILE).unlink()
    shutil.rmtree(tmp_path / "good" / "3")
    assert await good.reload() == []
    assert served(good) == [("good", 1)]


def take_away(models_dir: Path, leave: str) -> None:
    models_dir.rename(models_dir.with_name("away"))
    if leave != "no folder":
        models_dir.mkdir()
    if leave in ("lost+found", "good"):
        (models_dir / leave).mkdir()


@pytest.mark.parametrize("leave", ["nothing", "no folder", "lost+found", "good"])
async def test_absence_drops_nothing(
    tmp_path: Path, good: LocalPredictor, caplog: pytest.LogCaptureFixture, leave: str
) -> None:
    await good.start()
    take_away(tmp_path, leave)
    for _ in range(3):
        (problem,) = await good.reload()
        assert "is missing" in problem or "holds no models any more" in problem
        assert served(good) == [("good", 1)]
        assert good.ready()
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.with_name("away").rename(tmp_path)
    assert await good.reload() == []


async def test_readiness_follows_the_default_model(
    tmp_path: Path, add_classifier: Callable[..., Path]
) -> None:
    named = add_classifier("named")
    add_classifier("other")
    predictor = load(tmp_path, default_classifier="named")
    await predictor.start()
    assert predictor.ready()
    shutil.rmtree(named.parent)
    await predictor.reload()
    assert served(predictor) == [("other", 1)]
    assert not predictor.ready()
    add_classifier("named")
    await predictor.reload()
    assert predictor.ready()
    await predictor.close()


@pytest.mark.parametrize(
    ("setting", "name"),
    [("default_classifier", "nosuch"), ("default_generator", "good"), ("default_encoder", "good")],
)
async def test_a_default_that_is_not_served_stops_the_start(
    tmp_path: Path, add_classifier: Callable[..., Path], setting: str, name: str
) -> None:
    add_classifier("good")
    changes: dict[str, Any] = {setting: name}
    predictor = load(tmp_path, **changes)
    with pytest.raises(
        RepositoryError, match=f"^{setting} is '{name}', expected a .* model that is served: "
    ):
        await predictor.start()
    await predictor.close()


def linear(last: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    weights = np.random.default_rng(0).normal(0, 0.05, (784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["logits"]),
        helper.make_node(last, ["logits"], ["probabilities"]),
    ]
    return nodes, [numpy_helper.from_array(weights, "W")]


def add_linear(root: Path, name: str = "linear", last: str = "Softmax", **changes: Any) -> Path:
    graph = make_model(*linear(last), (IMAGES,), (PROBABILITIES,))
    return write_model(
        root, graph, name=name, task="classification", inputs=(IMAGES,), outputs=(PROBABILITIES,), **changes
    )


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("Identity", "expected probabilities: 0 to 1, adding up to 1"),
        ("Sigmoid", "expected probabilities"),
        ("Sqrt", "expected"),
        ("Reciprocal", "is not finite for zeros"),
        ("LogSoftmax", "expected probabilities"),
    ],
)
async def test_outputs_that_are_no_probabilities_are_refused(
    tmp_path: Path, good: LocalPredictor, last: str, reason: str
) -> None:
    add_linear(tmp_path, last=last)
    await good.start()
    (failure,) = good.models().failures
    assert reason in failure.reason
    assert served(good) == [("good", 1)]


async def test_two_labels_of_one_name_stay_two(tmp_path: Path) -> None:
    folder = add_linear(tmp_path, labels=("a", "a", "a#2", "b", "c", "d", "e", "f", "a", "a#2"))
    labels = ("a", "a#3", "a#2", "b", "c", "d", "e", "f", "a#4", "a#2#2")
    assert read_manifest(folder).labels == labels
    assert len(set(labels)) == 10


async def test_a_graph_with_more_outputs_than_the_manifest_names_is_served(tmp_path: Path) -> None:
    folder = add_linear(tmp_path)
    graph = onnx.load(folder / MODEL_FILE)
    graph.graph.node.append(
        helper.make_node("Constant", [], ["words"], value_strings=[b"x", b"y"]),
    )
    graph.graph.output.append(helper.make_tensor_value_info("words", TensorProto.STRING, [2]))
    graph.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]))
    resave(folder, graph)
    predictor = load(tmp_path)
    await predictor.start()
    assert served(predictor) == [("linear", 1)]
    await predictor.close()


def test_an_output_of_strings_says_what_to_do(tmp_path: Path) -> None:
    folder = add_linear(tmp_path)
    change(folder, outputs=[{"name": "p", "datatype": "BYTES", "shape": [-1, 1]}])
    with pytest.raises(
        RepositoryError, match="strings are not served: leave this output out of the manifest"
    ):
        read_manifest(folder)


def resave(folder: Path, graph: onnx.ModelProto, **options: Any) -> None:
    from service.models.manifest import sha256_of

    onnx.save(graph, folder / MODEL_FILE, **options)
    change(folder, sha256=sha256_of(folder / MODEL_FILE))


def change(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WEIGHTS = "model.onnx.data"


def add_external(root: Path, location: str = WEIGHTS) -> Path:
    folder = add_linear(root, "external")
    graph = onnx.load(folder / MODEL_FILE)
    resave(folder, graph, save_as_external_data=True, location=location, size_threshold=0)
    return folder


async def test_external_data_is_part_of_the_model(
    tmp_path: Path, add_classifier: Callable[..., Path]
) -> None:
    from service.models.verification import external_digests

    add_classifier("good")
    folder = add_external(tmp_path)
    predictor = load(tmp_path)
    await predictor.start()
    (failure,) = predictor.models().failures
    assert f"reads the file '{WEIGHTS}', expected its SHA-256 in manifest.json" in failure.reason
    change(folder, files=external_digests(folder))
    assert await predictor.reload() == []
    assert served(predictor) == [("external", 1), ("good", 1)]
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (problem,) = await predictor.reload()
    assert f"{WEIGHTS} has sha256" in problem
    (folder / WEIGHTS).write_bytes(data)
    assert await predictor.reload() == []
    (folder / WEIGHTS).unlink()
    (problem,) = await predictor.reload()
    assert f"{WEIGHTS} is missing" in problem
    assert served(predictor) == [("external", 1), ("good", 1)]
    await predictor.close()


@pytest.mark.parametrize("location", ["../x", "/etc/hostname", "a/../../x", ""])
async def test_files_outside_the_folder_are_refused(
    tmp_path: Path, good: LocalPredictor, location: str
) -> None:
    folder = add_external(tmp_path)
    graph = onnx.load(folder / MODEL_FILE, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / MODEL_FILE).write_bytes(graph.SerializeToString())
    from service.models.manifest import sha256_of

    change(folder, sha256=sha256_of(folder / MODEL_FILE))
    await good.start()
    (failure,) = good.models().failures
    assert "expected a file in the version's folder" in failure.reason
    change(folder, files={location: "0" * 64})
    await good.reload()
    (failure,) = good.models().failures
    assert "expected the path of another file in the version's folder" in failure.reason
