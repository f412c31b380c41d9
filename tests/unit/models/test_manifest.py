"""manifest.json: what is accepted, and the reason given for rejecting the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from service.errors import ManifestError
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Preprocess, read_manifest, sha256_of
from tests.support.text_models import add_captioner, add_search


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_written_manifest_is_read_back(add_classifier: Callable[..., Path]) -> None:
    folder = add_classifier("digits", 3)
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.version, manifest.task) == ("digits", 3, "classification")
    assert manifest.sha256 == sha256_of(folder / MODEL_FILE)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json is missing"):
        read_manifest(tmp_path)


Tensor = dict[str, object]
IMAGES: Tensor = {"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}
PROBABILITIES: Tensor = {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
SCORE: Tensor = {"name": "ood_score", "datatype": "FP32", "shape": [-1]}
Z: Tensor = {"name": "z", "datatype": "FP32", "shape": [-1, 4]}


def test_a_threshold_names_the_output_that_it_is_for(add_classifier: Callable[..., Path]) -> None:
    folder = add_classifier("digits", 1)
    assert read_manifest(folder).ood_output() is None
    rewrite(folder, abstain_above=3.5, outputs=[PROBABILITIES, SCORE])
    assert read_manifest(folder).ood_output() == 1


def test_a_model_for_inference_may_have_any_tensors(add_classifier: Callable[..., Path]) -> None:
    folder = add_classifier("digits")
    tensors = {"inputs": [Z | {"name": "label"}, IMAGES], "outputs": [IMAGES, SCORE], "labels": []}
    rewrite(folder, task="inference", **tensors)
    manifest = read_manifest(folder)
    assert (manifest.condition(), manifest.labels) == (None, ())
    rewrite(folder, task="encoding", **tensors)
    with pytest.raises(ManifestError, match="output images is UINT8"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "abc"}, "sha256: String should match pattern"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"name": "../etc"}, "name: String should match pattern"),
        ({"version": 2}, "describes digits/2, but lies in digits/1"),
        ({"inputs": [IMAGES | {"datatype": "FLOAT"}]}, "inputs.0.datatype: Input should be 'BOOL'"),
        ({"inputs": [IMAGES | {"shape": [28, 28]}]}, r"expected \[-1, ...\] with positive sizes; export the"),
        ({"inputs": [IMAGES | {"shape": [-1, 28, -1]}]}, r"with positive sizes; python -m onnxruntime.tools"),
        ({"labels": ["a", "b"]}, "labels names 2 classes, expected 10"),
        ({"labels": [], "outputs": [PROBABILITIES | {"shape": [-1, 2**62]}]}, "names 0 classes"),
        ({"inputs": [IMAGES, Z]}, "a classification model has 2 inputs, expected 1"),
        ({"outputs": [IMAGES]}, r"output images is UINT8 \[-1, 28, 28\], expected FP32 \[-1, classes\]"),
        ({"task": "generation"}, "a generation model needs an input z"),
        ({"task": "generation", "inputs": [Z]}, "output probabilities is FP32"),
        ({"task": "generation", "inputs": [Z, IMAGES]}, r"has the inputs \['images'\], expected only z and"),
        (
            {"abstain_above": 3.5},
            r"outputs are probabilities FP32 \[-1, 10\], expected ood_score FP32 \[-1\]",
        ),
        (
            {"abstain_above": 3.5, "outputs": [PROBABILITIES, SCORE | {"shape": [-1, 1]}]},
            r"ood_score FP32 \[-1, 1\], expected ood_score FP32 \[-1\] too",
        ),
        ({"abstain_above": 0, "outputs": [PROBABILITIES, SCORE]}, "abstain_above: Input should be greater"),
        (
            {"preprocess": "crop"},
            "preprocess: Input should be 'mnist-digit', 'resize', 'center-crop' or 'none'",
        ),
        (
            {"preprocess": "mnist-digit", "inputs": [IMAGES | {"shape": [-1, 32, 32]}]},
            r"preprocess is mnist-digit, but the inputs are images UINT8 \[-1, 32, 32\], expected UINT8",
        ),
        (
            {"preprocess": "mnist-digit", "inputs": [IMAGES | {"shape": [-1, 28, 28, 3]}]},
            r"preprocess is mnist-digit, but the inputs are images UINT8 \[-1, 28, 28, 3\], expected UINT8",
        ),
        (
            {"preprocess": "resize", "inputs": [IMAGES | {"datatype": "FP32"}]},
            r"preprocess is resize, but the inputs are images FP32 \[-1, 28, 28\], expected images",
        ),
        (
            {"task": "encoding", "inputs": [IMAGES | {"name": "label"}]},
            r"an encoding model has the inputs label UINT8 \[-1, 28, 28\], expected images UINT8 and label",
        ),
        (
            {"task": "encoding", "inputs": [IMAGES, Z]},
            r"an encoding model has the inputs .*, z FP32 .*, expected images UINT8 and label",
        ),
        (
            {"task": "encoding", "inputs": [IMAGES], "outputs": [Z, IMAGES]},
            r"output images is UINT8 \[-1, 28, 28\], expected FP32 \[-1, size\]",
        ),
        (
            {"task": "encoding", "inputs": [IMAGES, Z | {"name": "label"}], "outputs": [Z]},
            r"input label is FP32 .*, expected INT64 \[-1\]",
        ),
    ],
)
def test_wrong_manifest_is_refused_with_the_reason(
    add_classifier: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    folder = add_classifier("digits")
    rewrite(folder, **changes)
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder)


def test_classes_without_names_are_numbered(add_classifier: Callable[..., Path]) -> None:
    folder = add_classifier("digits")
    rewrite(folder, labels=[])
    assert read_manifest(folder).labels == tuple("0123456789")


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        ([-1, 28, 28], "UINT8", "mnist-digit"),
        ([-1, 28, 28, 1], "UINT8", "mnist-digit"),
        ([-1, 1, 28, 28], "UINT8", "mnist-digit"),
        ([-1, 28, 28, 3], "UINT8", "resize"),
        ([-1, 3, 32, 32], "UINT8", "resize"),
        ([-1, 32, 32], "UINT8", "resize"),
        ([-1, 28, 28], "FP32", "none"),
        ([-1, 784], "UINT8", "none"),
        ([-1, 28, 28, 4], "UINT8", "none"),
    ],
)
def test_manifest_older_than_preprocess_goes_by_the_shape(
    add_classifier: Callable[..., Path], shape: list[int], datatype: str, expected: str
) -> None:
    folder = add_classifier("digits")
    content = json.loads((folder / MANIFEST_FILE).read_text())
    del content["preprocess"]
    content["inputs"] = [{"name": "images", "datatype": datatype, "shape": shape}]
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    manifest = read_manifest(folder)
    assert (manifest.preprocess, manifest.picture_preprocess) == (None, expected)


@pytest.mark.parametrize("preprocess", get_args(Preprocess))
def test_named_preprocess_wins_over_the_shape(add_classifier: Callable[..., Path], preprocess: str) -> None:
    folder = add_classifier("digits")
    rewrite(folder, preprocess=preprocess)
    assert read_manifest(folder).picture_preprocess == preprocess


def test_text_that_is_not_json_is_refused(add_classifier: Callable[..., Path]) -> None:
    folder = add_classifier()
    (folder / MANIFEST_FILE).write_text("{")
    with pytest.raises(ManifestError, match="is not a manifest: Invalid JSON"):
        read_manifest(folder)


def test_tasks_of_texts_require_their_outputs(tmp_path: Path) -> None:
    for folder, task in ((add_search(tmp_path), "search"), (add_captioner(tmp_path), "captioning")):
        outputs = json.loads((folder / MANIFEST_FILE).read_text())["outputs"]
        assert read_manifest(folder).task == task
        for changes, message in (
            ({"outputs": outputs[1:]}, f"a {task} model has the outputs"),
            ({"outputs": outputs[::-1]}, f"a {task} model has the outputs"),
            ({"labels": ["a", "b"]}, r"output digit is FP32 \[-1, 1[01]\], expected FP32 \[-1, [23]\]"),
            ({"inputs": [Z]}, "expected text UINT8|needs one input of images, UINT8"),
        ):
            original = (folder / MANIFEST_FILE).read_text()
            rewrite(folder, **changes)
            with pytest.raises(ManifestError, match=message):
                read_manifest(folder)
            (folder / MANIFEST_FILE).write_text(original)
