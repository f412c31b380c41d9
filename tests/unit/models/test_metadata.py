"""A graph that lies without its manifest: described by its own metadata and tensors, or refused alone."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.errors import ManifestError
from service.models.folder import read_info
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest, sha256_of
from service.models.metadata import PREFIX, manifest_of_graph
from tests.support.models import (
    DIGITS,
    IMAGES,
    LABEL,
    PROBABILITIES,
    first_pixel_classifier,
    ramp_generator,
    write_model,
    z_spec,
)
from training.provenance.metadata import describe_graph

COLOURS = ("rot", "grün", "青", *"abcdefg")


def bare(folder: Path, graph: onnx.ModelProto, **entries: str) -> Path:
    """A version folder with nothing but a graph, whose metadata are `entries`."""
    folder.mkdir(parents=True, exist_ok=True)
    del graph.metadata_props[:]
    for name, value in entries.items():
        graph.metadata_props.add(key=PREFIX + name, value=value)
    onnx.save(graph, folder / MODEL_FILE)
    return folder


def test_a_graph_without_a_manifest_describes_itself(tmp_path: Path) -> None:
    """What an export writes into a graph is all that the manifest said, except what was measured."""
    models = tmp_path / "models"
    folder = write_model(
        models,
        first_pixel_classifier(),
        name="colours",
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
        labels=COLOURS,
    )
    told = read_manifest(folder).model_copy(
        update={
            "description": "Names colours.",
            "preprocess": "resize",
            "command": "python -m training export colours",
            "metrics": {"data": "colours", "data_digest": "abc"},
        }
    )
    graph = onnx.load(folder / MODEL_FILE)
    describe_graph(graph, told, "0123abc")
    onnx.save(graph, folder / MODEL_FILE)
    (folder / MANIFEST_FILE).unlink()
    assert read_info(folder).manifest == told.model_copy(update={"sha256": sha256_of(folder / MODEL_FILE)})


def test_a_generators_conditions_are_read(tmp_path: Path) -> None:
    folder = bare(tmp_path / "ramp" / "3", ramp_generator(), task="generation", labels=json.dumps(DIGITS))
    manifest = read_info(folder).manifest
    assert (manifest.name, manifest.version, manifest.labels) == ("ramp", 3, DIGITS)
    assert (manifest.inputs, manifest.outputs) == ((z_spec(), LABEL), (IMAGES,))


def test_a_bare_classifier_needs_no_metadata(tmp_path: Path) -> None:
    folder = bare(tmp_path / "first" / "1", first_pixel_classifier())
    assert read_info(folder).manifest.labels == DIGITS


@pytest.mark.parametrize(
    ("graph", "task"), [(first_pixel_classifier, "classification"), (ramp_generator, "generation")]
)
def test_the_tensors_tell_a_task_that_no_metadata_name(
    tmp_path: Path, graph: Callable[[], onnx.ModelProto], task: str
) -> None:
    folder = bare(tmp_path / "own" / "1", graph(), labels=json.dumps(DIGITS))
    manifest = read_info(folder).manifest
    assert manifest.task == task
    assert manifest.description.endswith(f"Its tensors are those of {task}.")


def test_other_tensors_are_those_of_inference(tmp_path: Path) -> None:
    """Without what no client could name or split: texts, and outputs that have no rows."""
    graph = first_pixel_classifier()
    graph.graph.input.append(helper.make_tensor_value_info("label", TensorProto.FLOAT, ["batch", 4]))
    graph.graph.output.insert(0, helper.make_tensor_value_info("names", TensorProto.STRING, ["batch"]))
    graph.graph.output.insert(0, helper.make_tensor_value_info("total", TensorProto.FLOAT, [3]))
    manifest = read_info(bare(tmp_path / "own" / "1", graph)).manifest
    assert manifest.task == "inference"
    assert [spec.name for spec in manifest.inputs] == ["images", "label"]
    assert [spec.name for spec in manifest.outputs] == ["probabilities"]
    assert (manifest.labels, manifest.condition()) == ((), None)


def test_a_bare_classifiers_probabilities_need_not_come_first(tmp_path: Path) -> None:
    """skl2onnx puts the label before them, and onnxmltools gives it a wrong shape."""
    graph = first_pixel_classifier()
    graph.graph.output.insert(0, helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"]))
    graph.graph.output.insert(0, helper.make_tensor_value_info("wrong", TensorProto.INT64, [1]))
    folder = bare(tmp_path / "first" / "1", graph, task="classification")
    assert [output.name for output in read_info(folder).manifest.outputs] == ["probabilities", "index"]


def test_probabilities_that_are_no_tensor_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """skl2onnx's default for classifiers is a sequence of maps."""
    graph = first_pixel_classifier()
    del graph.graph.output[:]
    value = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    graph.graph.output.append(helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"]))
    graph.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(value)))
    folder = bare(tmp_path / "first" / "1", graph, task="classification")
    with pytest.raises(ManifestError, match=r"maps is no tensor, expected FP32 .*; skl2onnx makes one"):
        read_info(folder)


def zipmap(name: str, classes: list[str] | list[int]) -> onnx.NodeProto:
    node = helper.make_node("ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml")
    node.attribute.append(helper.make_attribute(name, classes))
    return node


def strings(name: str, values: list[str], encoding: str = "utf-8") -> onnx.TensorProto:
    data = [value.encode(encoding) for value in values]
    return onnx.TensorProto(name=name, data_type=TensorProto.STRING, dims=[len(data)], string_data=data)


NUMBERS = [3, 1, 4, 15, 9, 2, 6, 5, 35, 8]


@pytest.mark.parametrize(
    ("part", "labels"),
    [
        (zipmap("classlabels_strings", list(COLOURS)), COLOURS),
        (zipmap("classlabels_int64s", NUMBERS), tuple(map(str, NUMBERS))),
        (strings("classes", list(COLOURS)), COLOURS),
        (helper.make_tensor("classes", TensorProto.INT32, [10], NUMBERS), tuple(map(str, NUMBERS))),
        (helper.make_tensor("classes", TensorProto.INT64, [10], NUMBERS), tuple(map(str, NUMBERS))),
        (strings("classes", ["café", *DIGITS[1:]], "latin-1"), ("caf\ufffd", *DIGITS[1:])),
        (zipmap("classlabels_strings", ["too", "few"]), DIGITS),
        (strings("weights", list(COLOURS)), DIGITS),
    ],
)
def test_a_bare_classifier_keeps_the_classes_of_its_converter(
    part: onnx.NodeProto | onnx.TensorProto, labels: tuple[str, ...], tmp_path: Path
) -> None:
    """skl2onnx and onnxmltools write them into nodes or constants."""
    graph = first_pixel_classifier()
    (graph.graph.node if isinstance(part, onnx.NodeProto) else graph.graph.initializer).append(part)
    assert read_info(bare(tmp_path / "first" / "1", graph)).manifest.labels == labels


def test_labels_in_the_metadata_win_over_the_converters_classes(tmp_path: Path) -> None:
    graph = first_pixel_classifier()
    graph.graph.node.append(zipmap("classlabels_strings", list(COLOURS)))
    folder = bare(tmp_path / "first" / "1", graph, labels=json.dumps(DIGITS))
    assert read_info(folder).manifest.labels == DIGITS


def test_the_folders_name_a_bare_graph(tmp_path: Path) -> None:
    entries = {"name": "other", "version": "9", "task": "classification", "labels": json.dumps(DIGITS)}
    folder = bare(tmp_path / "copied" / "2", first_pixel_classifier(), **entries)
    manifest = manifest_of_graph(folder)
    assert (manifest.name, manifest.version) == ("copied", 2)


def test_the_manifest_wins(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path,
        first_pixel_classifier(),
        name="first",
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
    )
    bare(folder, first_pixel_classifier(), task="generation", labels="[")
    assert read_info(folder).manifest == read_manifest(folder)
    (folder / MANIFEST_FILE).write_text("{")
    with pytest.raises(ManifestError, match="is not a manifest"):
        read_info(folder)
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).symlink_to("nowhere")
    with pytest.raises(ManifestError, match=r"manifest\.json is missing$"):
        read_info(folder)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"task": "sorting"}, "task: Input should be 'classification'"),
        (
            {"task": "classification", "labels": '["a", "b"]'},
            "Value error, labels names 2 classes, expected 10",
        ),
        (
            {"task": "classification", "labels": '["a"'},
            """inkserve.labels begins '["a"', expected a JSON list of texts: EOF""",
        ),
        ({"task": "classification", "labels": "a, b"}, "inkserve.labels begins 'a, b', expected a JSON list"),
        ({"task": "classification", "labels": '{"a": 1}'}, "labels: Input should be a valid tuple"),
        ({"task": "classification", "labels": "[1, 2]"}, "labels.0: Input should be a valid string"),
        (
            {"task": "classification", "labels": "[" * 10_000},
            f"inkserve.labels begins '{'[' * 40}', expected a JSON list of texts: recursion",
        ),
        ({"task": "generation"}, "Value error, a generation model needs an input z"),
        (
            {"task": "classification", "labels": json.dumps(DIGITS), "preprocess": "sharpen"},
            "preprocess: Input should be 'mnist-digit'",
        ),
    ],
)
def test_wrong_metadata_are_refused_with_the_reason(
    tmp_path: Path, entries: dict[str, str], reason: str
) -> None:
    folder = bare(tmp_path / "first" / "1", first_pixel_classifier(), **entries)
    with pytest.raises(ManifestError) as error:
        read_info(folder)
    start = "manifest.json is missing, and the metadata of model.onnx cannot replace it: "
    assert f"{start}{reason}" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a graph", b"\x72\x03\x0a\x01\xff"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "first" / "1"
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(content)
    with pytest.raises(ManifestError, match=r"the metadata of model\.onnx cannot replace it"):
        read_info(folder)


def test_a_folder_without_a_graph_misses_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "first" / "1").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"manifest\.json is missing$"):
        read_info(tmp_path / "first" / "1")


def test_only_tensors_that_a_manifest_can_name_are_taken(tmp_path: Path) -> None:
    """Weights that an old graph lists among its inputs, and an output of strings."""
    graph = first_pixel_classifier()
    graph.graph.input.append(helper.make_tensor_value_info("ten", TensorProto.INT64, []))
    graph.graph.output.append(helper.make_tensor_value_info("words", TensorProto.STRING, ["batch"]))
    folder = bare(tmp_path / "first" / "1", graph, task="classification", labels=json.dumps(DIGITS))
    manifest = read_info(folder).manifest
    assert (manifest.inputs, manifest.outputs) == ((IMAGES,), (PROBABILITIES,))


def test_weights_in_other_files_are_listed(tmp_path: Path) -> None:
    folder = bare(tmp_path / "ramp" / "1", ramp_generator(), task="generation", labels=json.dumps(DIGITS))
    graph = onnx.load(folder / MODEL_FILE)
    onnx.save(graph, folder / MODEL_FILE, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert read_info(folder).manifest.files == {"w.bin": sha256_of(folder / "w.bin")}


def made(folder: Path) -> Manifest | None:
    """The manifest, or None if there is a reason against it; anything else is raised."""
    try:
        return read_info(folder).manifest
    except ManifestError:
        return None


NAMES = st.sampled_from(["task", "labels", "preprocess", "command", "description", "data", "name", "version"])
VALUES = st.one_of(
    st.text(),
    st.sampled_from(["classification", "generation", "encoding", "resize", json.dumps(DIGITS)]),
    st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps),
    st.lists(st.text(), min_size=10, max_size=10).map(json.dumps),
)


@pytest.mark.slow
@given(entries=st.dictionaries(NAMES, VALUES), others=st.dictionaries(st.text(min_size=1), st.text()))
def test_arbitrary_metadata_make_a_manifest_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, str], others: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("any") / "first" / "1"
    graph = first_pixel_classifier()
    bare(folder, graph, **entries)
    for key, value in others.items():
        graph.metadata_props.add(key=key, value=value)
    onnx.save(graph, folder / MODEL_FILE)
    manifest = made(folder)
    if manifest is not None:
        assert manifest.task == entries.get("task", "classification") != "generation"
        assert len(manifest.labels) == 10 or manifest.task == "encoding"


@given(cut=st.integers(0, 1000), flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255))))
def test_a_damaged_graph_makes_a_manifest_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("any") / "first" / "1"
    bare(folder, first_pixel_classifier(), task="classification", labels=json.dumps(DIGITS))
    content = bytearray((folder / MODEL_FILE).read_bytes())
    for place, value in flips:
        content[place % len(content)] = value
    (folder / MODEL_FILE).write_bytes(content[: len(content) - cut])
    manifest = made(folder)
    assert manifest is None or manifest.name == "first"
