"""The shipped models: small, true to their manifests, and as good as README.md says."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard, ModelCardData

from service.content.prompts import text_rows
from service.http.routes.openapi_bodies import PROMPTS
from service.models.folder import latest_version, read_info, scan
from service.models.manifest import MODEL_FILE, STYLES, Manifest, read_manifest, sha256_of
from training.captions.grammar import DIGITS
from training.cards.front_matter import front_matter
from training.cost import multiply_adds
from training.provenance.bom import BOM_FILE

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
FOLDERS = [folder for folders in scan(MODELS).versions.values() for folder in folders.values()]
MB = 1_000_000

CUDA_OPERATORS = set(
    re.findall(
        r"\w+",
        """
        Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat ConstantOfShape
        Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp Expand
        Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual
        Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul
        Max MaxPool Min Mod Mul Neg Not OneHot Or Pad Pow QuantizeLinear Reciprocal ReduceL2 ReduceMax
        ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Resize Round Shape Sigmoid Sign Sin
        Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where
        """,
    )
)
"""Operators with a kernel in onnxruntime's CUDA provider, by its docs/OperatorKernels.md. Mean has none."""

each_version = pytest.mark.parametrize("folder", FOLDERS, ids=[f"{f.parent.name}/{f.name}" for f in FOLDERS])


def latest(name: str) -> Manifest:
    return read_manifest(latest_version(MODELS / name))


def test_every_family_is_shipped() -> None:
    families = {"mlp", "cnn", "cnn-pruned", "vit", "gan", "flow", "flow-distilled", "vae", "vae-encoder"}
    families |= {"text", "text-image"}
    assert families <= {folder.parent.name for folder in FOLDERS}


def test_every_prompt_that_the_api_describes_is_understood_as_meant() -> None:
    """The pattern in the OpenAPI description promises 200 for each of them."""
    manifest = latest("text")
    ends = [("", low, high) for low, high in STYLES.values()]
    prompts = [" ".join(word for word in words if word) for words in itertools.product(*ends, DIGITS)]
    assert all(re.fullmatch(PROMPTS, prompt) for prompt in prompts)
    session = onnxruntime.InferenceSession(latest_version(MODELS / "text") / MODEL_FILE)
    rows = text_rows(prompts, manifest.inputs[0].shape[1])
    digit, understood, *styles = session.run(["digit", "understood", *STYLES], {"text": rows})
    assert not [prompt for prompt, sure in zip(prompts, understood, strict=True) if sure < 0.5]
    expected = [*itertools.product((1, 0, 2), (1, 0, 2), (1, 0, 2), range(10))]
    read = np.stack([*(levels.argmax(1) for levels in styles), digit.argmax(1)], 1)
    assert [tuple(row) for row in read.tolist()] == expected


@each_version
def test_the_graph_is_the_one_that_its_manifest_names(folder: Path) -> None:
    assert sha256_of(folder / MODEL_FILE) == read_manifest(folder).sha256


@each_version
def test_a_row_costs_what_the_manifest_tells(folder: Path) -> None:
    assert read_manifest(folder).metrics["multiply_adds"] == multiply_adds(folder / MODEL_FILE)


@each_version
def test_the_graph_tells_nothing_of_the_machine_that_made_it(folder: Path) -> None:
    graph = onnx.load(folder / MODEL_FILE)
    for initializer in graph.graph.initializer:
        initializer.ClearField("raw_data")
    text = graph.SerializeToString()
    assert not re.search(rb"/(?:home|root|tmp|usr|work)/|\.py\b", text)


@each_version
def test_the_graph_describes_itself_as_its_manifest_does(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / folder.parent.name / folder.name
    alone.mkdir(parents=True)
    (alone / MODEL_FILE).write_bytes((folder / MODEL_FILE).read_bytes())
    manifest = read_manifest(folder)
    known = {name: manifest.metrics[name] for name in ("data", "data_digest")}
    assert read_info(alone).manifest == manifest.model_copy(update={"metrics": known, "default": False})
    metadata = {each.key: each.value for each in onnx.load(folder / MODEL_FILE).metadata_props}
    assert metadata["inkserve.license"] == "Apache-2.0"
    assert re.fullmatch("[0-9a-f]{40}", metadata["inkserve.commit"])


@each_version
def test_the_bill_of_materials_lists_what_lies_there(folder: Path) -> None:
    text = (folder / BOM_FILE).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    assert bom["metadata"]["component"]["hashes"][0]["content"] == read_manifest(folder).sha256
    listed = [each for each in bom["components"] if each["type"] == "file"]
    assert {each["name"]: each["hashes"][0]["content"] for each in listed} == {
        path.name: sha256_of(path) for path in folder.iterdir() if path.name != BOM_FILE
    }
    assert bom["metadata"]["component"]["modelCard"]["considerations"].keys() == {
        "useCases",
        "technicalLimitations",
    }


@each_version
def test_the_front_matter_gives_the_manifests_metrics(folder: Path) -> None:
    page, manifest = (folder / "README.md").read_text(), read_manifest(folder)
    assert page.startswith(front_matter(manifest))
    data = ModelCard(page, ignore_metadata_errors=False).data
    assert isinstance(data, ModelCardData)
    assert data.model_name == manifest.name
    for result in data.eval_results or []:
        assert manifest.metrics[str(result.metric_name)] == result.metric_value


@each_version
def test_the_card_and_the_log_lie_beside_it(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for name, value in read_manifest(folder).metrics.items():
        assert f"| {name} | {value} |" in card
    assert not re.search(r"\b(None|nan|inf)\b", card)  # a fact that was not known when the card was written


@each_version
def test_the_cuda_provider_has_a_kernel_for_each_operator(folder: Path) -> None:
    """Without one a node runs on the CPU, and a GPU's graph cannot be captured."""
    graph = onnx.load(folder / MODEL_FILE)
    assert {node.op_type for node in graph.graph.node if not node.domain} <= CUDA_OPERATORS


def test_the_models_are_small() -> None:
    sizes = [(folder / MODEL_FILE).stat().st_size for folder in FOLDERS]
    assert max(sizes) < 16 * MB
    assert sum(sizes) < 64 * MB


@pytest.mark.parametrize(
    ("name", "accuracy"), [("mlp", 0.993), ("cnn", 0.996), ("cnn-pruned", 0.996), ("vit", 0.995)]
)
def test_the_classifiers_are_as_good_as_they_must_be(name: str, accuracy: float) -> None:
    metrics = latest(name).metrics
    assert isinstance(metrics["test_accuracy"], float)
    assert metrics["test_accuracy"] >= accuracy
    assert metrics["test_errors"] == round((1 - metrics["test_accuracy"]) * 10_000)


@pytest.mark.parametrize("page", [ROOT / "README.md", MODELS / "README.md"])
@each_version
def test_the_pages_give_each_models_own_figures(page: Path, folder: Path) -> None:
    manifest = read_manifest(folder)
    if manifest != latest(manifest.name):
        return
    (row,) = re.findall(rf"^\| \[`{re.escape(manifest.name)}`\].*$", page.read_text(), re.MULTILINE)
    numbers = {float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", row)}
    main = {
        "classification": "test_accuracy",
        "generation": "frechet_distance",
        "encoding": "test_kl",
        "search": "precision_at_10",
        "captioning": "test_caption_accuracy",
        "gradient": "completeness_error",
    }
    expected = float(manifest.metrics[main[manifest.task]])
    shown = (
        [round(expected, 2)] if manifest.task in ("generation", "encoding") else [round(expected * 100, 2)]
    )
    assert numbers.issuperset(shown), row
    assert np.isfinite(expected)
