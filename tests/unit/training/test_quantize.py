import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.models.manifest import MODEL_FILE, read_manifest, sha256_of
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from tests.support.idx_files import write_folder
from training.__main__ import main
from training.datasets.splits import Splits
from training.onnx_files import open_session
from training.provenance.bom import BOM_FILE

CLASSES = 10


def command(name: str, models: Path, data_dir: Path, *more: str) -> list[str]:
    arguments = ["--models-dir", str(models), "--data-dir", str(data_dir)]
    return [name, *more, *arguments]


def quantize(models: Path, data_dir: Path, *more: str, model: str = "mlp") -> int:
    return main(command("quantize", models, data_dir, model, "--calibration-images", "40", *more))


@pytest.mark.slow
def test_int8_version_is_published_evaluated_and_served(models: Path, data_dir: Path, splits: Splits) -> None:
    assert quantize(models, data_dir) == 0
    folder = models / "mlp-int8" / "2"
    manifest = read_manifest(folder)
    assert manifest.metrics["source"] == "mlp/2"
    assert manifest.metrics["source_sha256"] == read_manifest(models / "mlp" / "2").sha256
    assert manifest.metrics["accuracy_loss_points"] == 0
    assert manifest.preprocess == "resize"
    metadata = {each.key: each.value for each in onnx.load(folder / MODEL_FILE).metadata_props}
    assert (metadata["inkserve.name"], metadata["inkserve.command"]) == ("mlp-int8", manifest.command)
    assert json.loads(metadata["inkserve.labels"]) == [*splits.labels]
    bom = json.loads((folder / BOM_FILE).read_text())["metadata"]["component"]
    assert bom["modelCard"]["considerations"] == {"useCases": ["Tests."]}
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


@pytest.mark.slow
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


@pytest.mark.slow
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
