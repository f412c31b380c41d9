"""What a version tells of its origin: metadata, front matter, bill of materials, and the code's commit."""

import hashlib
import json
import subprocess
from pathlib import Path

import onnx
import onnxruntime
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard, ModelCardData

from service.models.manifest import UNKNOWN_SHA256, Manifest
from tests.support.models import DIGITS, IMAGES, LABEL, PROBABILITIES, first_pixel_classifier, z_spec
from training.cards.front_matter import front_matter
from training.onnx_files import save_graph
from training.provenance.bom import BOM_FILE, Considerations, write_bom
from training.provenance.commit import commit
from training.provenance.measured import measured
from training.provenance.metadata import describe_graph

MANIFEST = Manifest(
    name="tiny",
    version=3,
    task="classification",
    description="Tiny, größer als nichts.",
    inputs=(IMAGES,),
    outputs=(PROBABILITIES,),
    labels=("ö", *DIGITS[1:]),
    sha256=UNKNOWN_SHA256,
    metrics={"data": "mnist", "data_digest": "abc", "test_accuracy": 0.5},
    command="python -m training export tiny",
)
EXPECTED = {
    "inkserve.name": "tiny",
    "inkserve.version": "3",
    "inkserve.task": "classification",
    "inkserve.description": "Tiny, größer als nichts.",
    "inkserve.labels": '["ö", "1", "2", "3", "4", "5", "6", "7", "8", "9"]',
    "inkserve.data": "mnist",
    "inkserve.data_digest": "abc",
    "inkserve.license": "Apache-2.0",
    "inkserve.command": "python -m training export tiny",
    "inkserve.commit": "0123abc",
}


def test_metadata_are_what_onnxruntime_shows(tmp_path: Path) -> None:
    graph = first_pixel_classifier()
    graph.metadata_props.add(key="tool", value="of another")
    graph.metadata_props.add(key="inkserve.old", value="ours, replaced")
    describe_graph(graph, MANIFEST, "0123abc")
    save_graph(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {**EXPECTED, "tool": "of another"}


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    graph = first_pixel_classifier()
    contents = []
    for _ in range(2):
        describe_graph(graph, MANIFEST, "0123abc")
        save_graph(graph, tmp_path / "model.onnx")
        contents.append((tmp_path / "model.onnx").read_bytes())
        graph = onnx.load(tmp_path / "model.onnx")
    assert contents[0] == contents[1]


GENERATOR = Manifest(
    name="ramp",
    version=1,
    task="generation",
    inputs=(z_spec(), LABEL),
    outputs=(IMAGES,),
    labels=DIGITS,
    sha256=UNKNOWN_SHA256,
    metrics={"samples": 100, "recall": 0.5, "real_recall": 0.9, "data": "unknown", "data_digest": "0" * 64},
)
QUANTISED = MANIFEST.model_copy(
    update={
        "name": "tiny-int8",
        "metrics": {
            **MANIFEST.metrics,
            "source": "tiny/3",
            "source_sha256": "1" * 64,
            "data_digest": "2" * 64,
        },
    }
)


@pytest.mark.parametrize("manifest", [MANIFEST, GENERATOR, QUANTISED], ids=lambda each: each.name)
def test_front_matter_is_what_the_hubs_own_parser_reads(manifest: Manifest) -> None:
    card = ModelCard(front_matter(manifest) + "# A card\n", ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData)
    data = card.data.to_dict()
    assert card.text.strip() == "# A card"
    assert (data["license"], data["library_name"]) == ("apache-2.0", "onnx")
    results = card.data.eval_results
    assert results is not None
    assert card.data.model_name == manifest.name
    assert {each.metric_name: each.metric_value for each in results} == measured(manifest)
    assert {each.dataset_split for each in results} == {"test"}


def test_front_matter_names_the_task_the_data_and_the_metrics_as_the_hub_does() -> None:
    content = yaml.safe_load(front_matter(MANIFEST).strip("-\n"))
    assert content["pipeline_tag"] == "image-classification"
    assert content["datasets"] == ["ylecun/mnist"]
    (result,) = content["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "test_accuracy", "value": 0.5}]
    other = yaml.safe_load(front_matter(GENERATOR).strip("-\n"))
    assert other["tags"] == ["onnx", "inkserve", "unknown", "class-conditional"]
    assert "datasets" not in other
    assert "int8" in front_matter(QUANTISED)


WORDS = Considerations("A layer.", "Tests.", "Many.")


@pytest.mark.parametrize("manifest", [GENERATOR, QUANTISED], ids=lambda each: each.name)
@pytest.mark.parametrize("words", [WORDS, Considerations()], ids=["words", "none"])
def test_the_bill_of_materials_is_valid(tmp_path: Path, manifest: Manifest, words: Considerations) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_bom(tmp_path, manifest, words, "0123abc")
    text = (tmp_path / BOM_FILE).read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"modelCard"', '"modelcard"')) is not None


def test_the_bill_of_materials_tells_what_the_manifest_and_the_card_say(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_bom(tmp_path, QUANTISED, WORDS, "0123abc")
    bom = json.loads((tmp_path / BOM_FILE).read_text())
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": QUANTISED.sha256}]
    assert model["pedigree"]["ancestors"][0]["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]
    assert {"name": "inkserve:commit", "value": "0123abc"} in model["properties"]
    card = model["modelCard"]
    assert card["considerations"] == {"useCases": ["Tests."], "technicalLimitations": ["Many."]}
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert metric == {"type": "test_accuracy", "value": "0.5", "slice": "test set"}
    parts = {each["bom-ref"]: each["hashes"][0]["content"] for each in bom["components"]}
    assert parts == {"data:mnist": "2" * 64, "file:model.onnx": hashlib.sha256(b"graph").hexdigest()}
    assert bom["dependencies"] == [{"ref": "model:tiny-int8/3", "dependsOn": sorted(parts)}]


def test_the_same_version_gives_the_same_bill_and_a_changed_file_another(tmp_path: Path) -> None:
    def made() -> bytes:
        write_bom(tmp_path, GENERATOR, WORDS, "")
        return (tmp_path / BOM_FILE).read_bytes()

    (tmp_path / "README.md").write_text("a")
    first = made()
    (tmp_path / "model.sig").write_text("not part of what is signed")
    assert made() == first
    (tmp_path / "README.md").write_text("b")
    assert json.loads(made())["serialNumber"] != json.loads(first)["serialNumber"]


def test_what_is_unknown_is_left_out() -> None:
    graph = first_pixel_classifier()
    describe_graph(graph, MANIFEST.model_copy(update={"command": "", "metrics": {}}), "")
    keys = {each.key.removeprefix("inkserve.") for each in graph.metadata_props}
    assert keys == {"name", "version", "task", "description", "labels", "license"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    code = tmp_path / "training"
    code.mkdir()
    (code / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_commit_is_named_and_a_change_marked(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    (repository / "notes").write_text("not tracked")
    assert commit(repository / "training") == head
    (repository / "training" / "a.py").write_text("a = 2\n")
    assert commit(repository / "training") == f"{head}-dirty"


def test_code_that_no_repository_tracks_has_no_commit(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = repository / ".venv" / "training"
    installed.mkdir(parents=True)
    assert commit(installed) == ""
    assert commit(tmp_path_factory.mktemp("elsewhere")) == ""
