import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

from service.models.folder import CARD_FILE, read_info
from service.models.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    Preprocess,
    TensorSpec,
    read_manifest,
    sha256_of,
)
from tests.support.idx_files import write_folder
from tests.support.tiny_classifiers import LinearClassifier
from training.cards.card import Card
from training.datasets.splits import Splits, load
from training.errors import ExportError
from training.export.publish import Model, publish
from training.provenance.bom import BOM_FILE
from training.provenance.commit import commit
from training.runs.finished import TRAINING_FILE, WEIGHTS_FILE
from training.runs.run import CONFIG_FILE, to_safetensors
from training.versions import Target

pytestmark = pytest.mark.slow

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
PROBABILITIES = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))
CARD = Card("A description.", "An architecture.", "A training.", "A use.", "Limits.")
METRICS = {"test_accuracy": 0.5}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load(write_folder(tmp_path_factory.mktemp("data"), test=300))


@pytest.fixture
def run_dir(tmp_path: Path, splits: Splits) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    hyperparameters = {"model": "tiny", "data_digest": splits.digest}
    record = {"command": "python -m training train tiny", "hyperparameters": hyperparameters}
    (folder / CONFIG_FILE).write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    return folder


def model(
    splits: Splits,
    *,
    name: str = "tiny",
    drift: float = 0.0,
    measure: Callable[[Path], Mapping[str, Any]] = lambda _: METRICS,
    outputs: tuple[TensorSpec, ...] = (PROBABILITIES,),
    **options: Any,
) -> Model:
    return Model(
        name=name,
        task="classification",
        network=LinearClassifier(drift).eval(),
        inputs=[IMAGES],
        outputs=outputs,
        keep=["logits"],
        parity_inputs={"images": splits.test.images},
        tolerance=1e-5,
        measure=measure,
        card=CARD,
        **options,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_published_version_is_whole_and_true(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    models_dir = tmp_path / "models"
    (folder,) = publish([model(splits)], splits=splits, run_dir=run_dir, target=Target(models_dir))
    assert folder == models_dir / "tiny" / "1"
    manifest = read_manifest(folder)
    assert manifest.sha256 == sha256_of(folder / MODEL_FILE)
    known = {"data": "unknown", "data_digest": splits.digest, "multiply_adds": 784 * 10}
    assert manifest.metrics == METRICS | known
    assert manifest.command.startswith("python -m training train tiny && python -m training")
    assert manifest.labels == splits.labels
    expected = {MODEL_FILE, MANIFEST_FILE, CARD_FILE, CONFIG_FILE, TRAINING_FILE, BOM_FILE}
    assert {path.name for path in folder.iterdir()} == expected
    bom = json.loads((folder / BOM_FILE).read_text())
    hashes = {
        each["name"]: each["hashes"][0]["content"] for each in bom["components"] if each["type"] == "file"
    }
    assert hashes == {name: sha256_of(folder / name) for name in expected - {BOM_FILE}}
    assert (folder / CARD_FILE).read_text().startswith("---\nlicense: apache-2.0\n")
    assert "| test_accuracy | 0.5 |" in (folder / CARD_FILE).read_text()
    assert [path.name for path in models_dir.iterdir()] == ["tiny"]


def test_graph_describes_itself(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    """Without its manifest the version is the same model, as far as it is known without measuring it."""
    models = [model(splits, preprocess="resize")]
    (folder,) = publish(models, splits=splits, run_dir=run_dir, target=Target(tmp_path / "models"))
    manifest = read_manifest(folder)
    (folder / MANIFEST_FILE).unlink()
    known = {name: manifest.metrics[name] for name in ("data", "data_digest")}
    assert read_info(folder).manifest == manifest.model_copy(update={"metrics": known})
    metadata = {each.key: each.value for each in onnx.load(folder / MODEL_FILE).metadata_props}
    assert metadata["inkserve.license"] == "Apache-2.0"
    assert metadata.get("inkserve.commit", "") == commit()


def test_run_that_is_exported_twice_gives_the_same_bytes(
    tmp_path: Path, splits: Splits, run_dir: Path
) -> None:
    seen = []
    for _ in range(2):
        target = Target(tmp_path / "models", version=1, force=True)
        publish([model(splits)], splits=splits, run_dir=run_dir, target=target)
        seen.append(files(tmp_path / "models"))
    assert seen[0] == seen[1]


def test_weights_are_published_only_if_asked_for(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    weights = LinearClassifier(0.0).state_dict()
    (run_dir / "best.safetensors").write_bytes(to_safetensors(weights))
    target = Target(tmp_path / "models", weights=True)
    (folder,) = publish([model(splits)], splits=splits, run_dir=run_dir, target=target)
    published = load_file(folder / WEIGHTS_FILE)
    assert published.keys() == weights.keys()
    assert all(torch.equal(published[name], weights[name]) for name in weights)
    assert f'"{WEIGHTS_FILE}"' in (folder / BOM_FILE).read_text()


def test_graph_that_differs_from_torch_is_not_published(
    tmp_path: Path, splits: Splits, run_dir: Path
) -> None:
    wrong = model(splits, drift=1e-3)
    with pytest.raises(ExportError, match=r"probabilities differs by 0\.001 .* expected at most 1e-05"):
        publish([wrong], splits=splits, run_dir=run_dir, target=Target(tmp_path / "models"))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("recorded", [{"data_digest": "abc"}, {}])
def test_run_of_other_data_is_not_published(
    tmp_path: Path, splits: Splits, run_dir: Path, recorded: dict[str, str]
) -> None:
    record = {"command": "python -m training train tiny", "hyperparameters": recorded}
    (run_dir / "config.json").write_text(json.dumps(record))
    digest = recorded.get("data_digest", "unknown")
    with pytest.raises(ExportError, match=f"on data with digest {digest}, but the data given is unknown"):
        publish([model(splits)], splits=splits, run_dir=run_dir, target=Target(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("metric", "before", "now"),
    [("test_accuracy", 0.99, 0.98), ("frechet_distance", 0.5, 1.5), ("test_elbo", -88.0, -95.0)],
)
def test_a_much_worse_version_needs_force(
    tmp_path: Path, splits: Splits, run_dir: Path, metric: str, before: float, now: float
) -> None:
    def put(value: float, *, force: bool = False) -> None:
        worse = model(splits, measure=lambda _: {metric: value})
        publish([worse], splits=splits, run_dir=run_dir, target=Target(tmp_path / "models", force=force))

    put(before)
    with pytest.raises(ExportError, match=rf"{metric} is {now:g}, {before:g} in version 1, expected at most"):
        put(now)
    assert [path.name for path in (tmp_path / "models" / "tiny").iterdir()] == ["1"]
    put(before + (now - before) / 100)
    put(now, force=True)
    assert {path.name for path in (tmp_path / "models" / "tiny").iterdir()} == {"1", "2", "3"}


def test_the_next_version_stays_the_default_of_its_task(
    tmp_path: Path, splits: Splits, run_dir: Path
) -> None:
    def published() -> Path:
        target = Target(tmp_path / "models")
        (folder,) = publish([model(splits)], splits=splits, run_dir=run_dir, target=target)
        return folder / "manifest.json"

    first = published()
    manifest = json.loads(first.read_text())
    assert "default" not in manifest
    first.write_text(json.dumps(manifest | {"default": True}))
    assert [json.loads(published().read_text())["default"] for _ in range(2)] == [True, True]


@pytest.mark.parametrize("preprocess", [None, "mnist-digit"])
def test_preprocess_is_written_only_if_named(
    tmp_path: Path, splits: Splits, run_dir: Path, preprocess: Preprocess | None
) -> None:
    models = [model(splits, preprocess=preprocess)]
    (folder,) = publish(models, splits=splits, run_dir=run_dir, target=Target(tmp_path / "models"))
    content = json.loads((folder / MANIFEST_FILE).read_text())
    assert content.get("preprocess", "absent") == (preprocess or "absent")


def test_failing_second_model_leaves_the_first_unpublished(
    tmp_path: Path, splits: Splits, run_dir: Path
) -> None:
    pair = [model(splits, name="first"), model(splits, name="second", drift=1e-3)]
    with pytest.raises(ExportError, match="differs"):
        publish(pair, splits=splits, run_dir=run_dir, target=Target(tmp_path / "models"))
    assert list((tmp_path / "models").iterdir()) == []


def test_failing_measurement_changes_no_model(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    def fail(_: Path) -> Mapping[str, Any]:
        raise ZeroDivisionError

    models_dir = tmp_path / "models"
    publish([model(splits)], splits=splits, run_dir=run_dir, target=Target(models_dir))
    before = files(models_dir)
    with pytest.raises(ZeroDivisionError):
        publish(
            [model(splits, measure=fail)],
            splits=splits,
            run_dir=run_dir,
            target=Target(models_dir, version=1, force=True),
        )
    assert files(models_dir) == before


def test_models_of_one_run_get_the_same_version(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    models_dir = tmp_path / "models"
    (models_dir / "second" / "6").mkdir(parents=True)
    seen: list[bool] = []

    def measure(path: Path) -> Mapping[str, Any]:
        sibling = path.parents[2] / "second" / path.parent.name / MODEL_FILE
        seen.append(sibling.is_file())
        return METRICS

    pair = [model(splits, name="first", measure=measure), model(splits, name="second")]
    folders = publish(pair, splits=splits, run_dir=run_dir, target=Target(models_dir))
    assert folders == [models_dir / "first" / "7", models_dir / "second" / "7"]
    assert seen == [True]


def test_existing_version_is_replaced_only_by_force(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    models_dir = tmp_path / "models"
    (models_dir / "tiny" / "3").mkdir(parents=True)
    (models_dir / "tiny" / "3" / "old").write_text("old")
    with pytest.raises(ExportError, match="3 exists: give another --version, or --force"):
        publish([model(splits)], splits=splits, run_dir=run_dir, target=Target(models_dir, version=3))
    assert [path.name for path in (models_dir / "tiny" / "3").iterdir()] == ["old"]
    target = Target(models_dir, version=3, force=True)
    (folder,) = publish([model(splits)], splits=splits, run_dir=run_dir, target=target)
    assert read_manifest(folder).version == 3
    assert not (folder / "old").exists()
    assert [path.name for path in models_dir.iterdir()] == ["tiny"]


def test_picture_is_published_and_shown_in_the_card(tmp_path: Path, splits: Splits, run_dir: Path) -> None:
    def draw(path: Path, picture: Path) -> None:
        assert path.is_file()
        picture.write_bytes(b"picture")

    with_picture = model(splits, pictures={"samples.png": draw})
    (folder,) = publish([with_picture], splits=splits, run_dir=run_dir, target=Target(tmp_path / "models"))
    assert (folder / "samples.png").read_bytes() == b"picture"
    assert "![samples](samples.png)" in (folder / CARD_FILE).read_text()
