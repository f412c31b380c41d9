import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.models.manifest import MODEL_FILE, Manifest, TensorSpec, read_manifest, sha256_of
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from tests.support.idx_files import write_folder
from training.__main__ import main
from training.datasets.splits import Splits, load
from training.evaluation.classification import classification
from training.onnx_files import open_session

CLASSES = 10


def network(splits: Splits) -> onnx.ModelProto:
    """784-16-10, as training/classifier.py exports it: the hidden units look for the classes' mean images."""
    rng = np.random.default_rng(0)
    images = splits.train.images.reshape(-1, 784) / 255
    means = np.stack([images[splits.train.labels == label].mean(0) for label in range(CLASSES)])
    hidden = np.concatenate([means - means.mean(0), rng.normal(0, 0.05, (6, 784))])
    head = np.eye(CLASSES, 16) * 2
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1]),
        "most": np.array(255, np.float32),
        "flat": np.array([-1, 784]),
        "w1": hidden.astype(np.float32),
        "b1": np.full(16, -0.5, np.float32),
        "w2": head.astype(np.float32),
        "b2": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["images", "axis"], ["channel"], name="channel"),
        helper.make_node("Cast", ["channel"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "most"], ["scaled"], name="div"),
        helper.make_node("Reshape", ["scaled", "flat"], ["rows"], name="reshape"),
        helper.make_node("Gemm", ["rows", "w1", "b1"], ["sums"], name="first", transB=1),
        helper.make_node("Relu", ["sums"], ["features"], name="relu"),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"], name="last", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
    ]
    images_info = helper.make_tensor_value_info("images", TensorProto.UINT8, ["rows", 28, 28])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", CLASSES])
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "mlp", [images_info], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> Splits:
    return load(data_dir)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, splits: Splits) -> Path:
    """A model repository with mlp/2; not to be changed by a test."""
    models = tmp_path_factory.mktemp("models")
    folder = models / "mlp" / "2"
    folder.mkdir(parents=True)
    path = folder / MODEL_FILE
    onnx.save(network(splits), path)
    manifest = Manifest(
        name="mlp",
        version=2,
        task="classification",
        inputs=(TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, CLASSES)),),
        labels=splits.labels,
        preprocess="resize",
        sha256=sha256_of(path),
        metrics={**classification(path, splits.test), "data": splits.name, "data_digest": splits.digest},
        command="python -m training export mlp",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return models


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "models"))


def command(name: str, models: Path, data_dir: Path, *more: str) -> list[str]:
    arguments = ["--models-dir", str(models), "--data-dir", str(data_dir)]
    return [name, *more, *arguments]


def quantize(models: Path, data_dir: Path, *more: str, model: str = "mlp") -> int:
    return main(command("quantize", models, data_dir, model, "--calibration-images", "40", *more))


def test_int8_version_is_published_evaluated_and_served(models: Path, data_dir: Path, splits: Splits) -> None:
    assert quantize(models, data_dir) == 0
    folder = models / "mlp-int8" / "2"
    manifest = read_manifest(folder)
    assert manifest.metrics["source"] == "mlp/2"
    assert manifest.metrics["source_sha256"] == read_manifest(models / "mlp" / "2").sha256
    assert manifest.metrics["accuracy_loss_points"] == 0
    assert manifest.preprocess == "resize"
    assert "| 256 |" in (folder / "README.md").read_text()
    assert main(command("evaluate", models, data_dir, "mlp-int8")) == 0

    engine = Engine(folder / MODEL_FILE, manifest, EngineOptions("cpu", 0, 1, (1, 8)))
    images = splits.test.images[:5]
    (served,) = engine.run([(images,)], 5)
    (expected,) = open_session(folder / MODEL_FILE).run(None, {"images": images})
    # Padding to the bucket changes the order of the last layer's float32 sums at most.
    np.testing.assert_allclose(served, expected, atol=1e-6)


def test_version_that_loses_too_much_is_not_published(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(models, data_dir, "--allow-loss", "-1") == 2
    assert "int8 loses 0.00 percentage points of accuracy against mlp/2" in capsys.readouterr().err
    assert not list(models.glob("mlp-int8/*"))


def test_int8_version_is_replaced_only_by_force(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "mlp-int8" / "2").mkdir(parents=True)
    assert quantize(models, data_dir) == 2
    assert "2 exists" in capsys.readouterr().err
    assert quantize(models, data_dir, "--force") == 0


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("other", [], "other holds no version"),
        ("mlp", ["--version", "3"], "mlp holds no version 3, only 2"),
        ("mlp", ["--calibration-images", "5000"], "5000 calibration images requested, unknown has 220"),
    ],
)
def test_unsuitable_model_is_refused_in_one_line(
    model: str,
    more: list[str],
    message: str,
    published: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert quantize(published, data_dir, *more, model=model) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_quantised_model_is_not_quantised_again(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(models, data_dir) == 0
    assert quantize(models, data_dir, model="mlp-int8") == 2
    assert "is quantised already" in capsys.readouterr().err


def test_weights_outside_the_graph_are_refused(
    models: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = models / "mlp" / "2"
    onnx.save(
        onnx.load(folder / MODEL_FILE),
        folder / MODEL_FILE,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    manifest = read_manifest(folder).model_copy(update={"sha256": sha256_of(folder / MODEL_FILE)})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    assert quantize(models, data_dir) == 2
    assert "keeps weights in other files" in capsys.readouterr().err


def test_other_data_is_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(models, write_folder(tmp_path / "other", train=120)) == 2
    assert "mlp/2 was trained on unknown" in capsys.readouterr().err
