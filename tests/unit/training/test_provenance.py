"""What a version tells of its origin: metadata in the graph, and the commit of the code."""

import subprocess
from pathlib import Path

import onnx
import onnxruntime
import pytest

from service.models.manifest import UNKNOWN_SHA256, Manifest
from tests.support.models import DIGITS, IMAGES, PROBABILITIES, first_pixel_classifier
from training.onnx_files import save_graph
from training.provenance.commit import commit
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
