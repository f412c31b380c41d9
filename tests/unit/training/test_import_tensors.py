"""The command `import --task inference`: networks of any tensors, as other programs export them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from service.models.manifest import MODEL_FILE, Manifest, read_manifest
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from training.__main__ import main

WORDS, SIZE = 7, 3
TABLE = np.random.default_rng(0).normal(size=(WORDS, SIZE)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(SIZE, 2)).astype(np.float32)

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Exported:
    """A network of words and numbers, whose nodes hold the size of the batch that it was exported for.

    batch: fixed, or None. length: words of a row. width: of the numbers' second axis. named: whether the axis
    of words is free and has a name.
    """

    batch: int | None = 1
    length: int = 4
    width: int = 2
    named: bool = False

    def write(self, path: Path) -> Path:
        """Write the graph: three outputs with rows, one without."""
        size = self.batch or "rows"
        flat, back = (self.batch or -1) * self.length, [self.batch or -1, self.length, 2]
        constants = {
            "table": TABLE,
            "weights": WEIGHTS,
            "flat": np.array([flat if self.batch else -1, SIZE]),
            "back": np.array(back),
            "row": np.array([self.batch or -1, self.width * 2]),
            "one": np.array([1]),
        }
        nodes = [
            helper.make_node("Gather", ["table", "words"], ["vectors"]),
            helper.make_node("Reshape", ["vectors", "flat"], ["list"]),
            helper.make_node("MatMul", ["list", "weights"], ["products"]),
            helper.make_node("Reshape", ["products", "back"], ["tokens"]),
            helper.make_node("Reshape", ["numbers", "row"], ["network.numbers"]),
            helper.make_node("ReduceSum", ["words", "one"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["numbers"], ["total"], keepdims=0),
            helper.make_node("Identity", ["network.numbers"], ["doubled.numbers"]),
        ]
        words = "sequence" if self.named else self.length
        inputs = [
            helper.make_tensor_value_info("words", TensorProto.INT64, [size, words]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [size, self.width, 2]),
        ]
        outputs = [
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("sum", TensorProto.INT64, None),
            helper.make_tensor_value_info("doubled.numbers", TensorProto.FLOAT, None),
        ]
        weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
        return path

    def rows(self, count: int) -> Tensors:
        """Rows of both inputs."""
        random = np.random.default_rng(2)
        return {
            "words": random.integers(0, WORDS, (count, self.length)),
            "numbers": random.normal(size=(count, self.width, 2)).astype(np.float32),
        }

    def outputs(self, rows: Tensors) -> Tensors:
        """What the network gives for them."""
        return {
            "tokens": TABLE[rows["words"]] @ WEIGHTS,
            "sum": rows["words"].sum(axis=1),
            "doubled.numbers": rows["numbers"].reshape(len(rows["numbers"]), -1),
        }


def import_(network: Path, models: Path, *more: str) -> int:
    return main(
        ["import", str(network), "brought", "--models-dir", str(models), "--task", "inference", *more]
    )


def answer(models: Path, rows: Tensors) -> tuple[Manifest, Tensors]:
    """What the published model gives, as the service loads it."""
    folder = models / "brought" / "1"
    manifest = read_manifest(folder)
    Engine(folder / MODEL_FILE, manifest, EngineOptions("cpu", 0, 1, (1, 2, 8))).warm_up()
    names = [spec.name for spec in manifest.outputs]
    session = onnxruntime.InferenceSession(folder / MODEL_FILE)
    return manifest, dict(zip(names, session.run(names, dict(rows)), strict=True))


NETWORKS = st.builds(
    Exported,
    batch=st.sampled_from([None, 1, 2, 5]),
    length=st.integers(1, 5),
    width=st.integers(1, 3),
    named=st.booleans(),
)


@pytest.mark.slow
@hypothesis_settings(max_examples=30)
@given(network=NETWORKS)
def test_published_graph_gives_what_the_network_gives(
    tmp_path_factory: pytest.TempPathFactory, network: Exported
) -> None:
    folder = tmp_path_factory.mktemp("import")
    flags = ["--axis", f"sequence={network.length}"] if network.named else []
    assert import_(network.write(folder / "network.onnx"), folder, *flags) == 0
    rows = network.rows(7)
    manifest, made = answer(folder, rows)
    expected = network.outputs(rows)
    assert [spec.shape for spec in manifest.inputs] == [(-1, network.length), (-1, network.width, 2)]
    assert list(made) == list(expected)
    for name, values in expected.items():
        assert np.allclose(made[name], values, atol=1e-5), name
    assert (manifest.task, manifest.labels) == ("inference", ())


def test_the_summary_names_the_tensors_and_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_(Exported().write(tmp_path / "network.onnx"), tmp_path) == 0
    told = capsys.readouterr().err
    assert "input words: INT64 [-1, 4]\ninput numbers: FP32 [-1, 2, 2]\n" in told
    assert "output tokens: FP32 [-1, 4, 2]\noutput sum: INT64 [-1]\n" in told
    assert "left out, because they have no row for each of the input: total float32 []\n" in told
    assert "batches of any size, no longer only of 1\n" in told


def edited(edit: Callable[[onnx.ModelProto], object], **changes: Any) -> Callable[[Path], None]:
    """A network whose graph is changed."""

    def write(path: Path) -> None:
        model = onnx.load(Exported(**changes).write(path))
        edit(model)
        onnx.save(model, path)

    return write


def with_another_batch(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3


def with_only_a_total(model: onnx.ModelProto) -> None:
    for name in ("tokens", "sum", "doubled.numbers"):
        model.graph.output.remove(next(each for each in model.graph.output if each.name == name))


def with_mixed_rows(model: onnx.ModelProto) -> None:
    """Subtract the batch's largest number from each row's."""
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["numbers"], ["largest"], keepdims=0),
            helper.make_node("Sub", ["numbers", "largest"], ["mixed"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("mixed", TensorProto.FLOAT, None))


def with_texts(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


@pytest.mark.parametrize(
    ("write", "flags", "message"),
    [
        (edited(with_another_batch), [], "batches of different sizes: words 1, numbers 3, expected the same"),
        (edited(with_only_a_total), [], "for 1 rows the outputs are total float32 []"),
        (edited(with_mixed_rows, batch=None), [], "gives another mixed than each row alone"),
        (edited(with_texts), [], "input words has datatype STRING, expected numbers"),
        (edited(str, named=True), [], "input words is (1, sequence); expected a batch axis and fixed sizes"),
        (edited(str, named=True), ["--axis", "length=4"], "or of a named axis in --axis"),
        (edited(str), ["--shape", "4"], "['words', 'numbers'], expected one with a --shape"),
        (edited(str), ["--mean", "0.5"], "--mean is given, expected it only for classifiers"),
        (edited(str), ["--labels", "labels.txt"], "--labels is given, expected it only for classifiers"),
    ],
)
def test_unusable_network_is_refused_in_one_line(
    write: Callable[[Path], None],
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "network.onnx")
    assert import_(tmp_path / "network.onnx", tmp_path, *flags) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told
    assert not (tmp_path / "brought").exists()


def test_an_axis_has_a_name_and_a_size_and_is_for_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Exported().write(tmp_path / "network.onnx")
    with pytest.raises(SystemExit):
        import_(network, tmp_path, "--axis", "sequence")
    assert "argument --axis: is 'sequence', expected NAME=SIZE" in capsys.readouterr().err
    assert main(["import", str(network), "brought", "--axis", "sequence=4"]) == 2
    assert "--axis is given, expected it only with --task inference" in capsys.readouterr().err


class Text(nn.Module):
    """A Transformer of words and a mask, with a token of its own before each text."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.words = nn.Embedding(20, 16)
        self.places = nn.Parameter(torch.randn(8, 16))
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a vector for each word, and one for the text."""
        embedded = self.words(words) + self.places
        whole = torch.cat([self.first.expand(len(words), -1, -1), embedded], 1)
        hidden = torch.cat([torch.zeros_like(mask[:, :1]), 1 - mask], 1) > 0
        vectors = self.layers(whole, src_key_padding_mask=hidden)
        return vectors[:, 1:], nn.functional.normalize(vectors[:, 0], dim=-1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporters warn of themselves
@pytest.mark.parametrize("dynamo", [False, True])
def test_torch_export_of_two_inputs_for_a_batch_of_one_takes_any_batch(tmp_path: Path, dynamo: bool) -> None:
    torch.manual_seed(0)
    network = Text().eval()
    words = torch.randint(0, 20, (5, 8))
    mask = (torch.arange(8) < torch.tensor([[8], [5], [1], [3], [7]])).long()
    names: Any = {"input_names": ["words", "mask"], "output_names": ["tokens", "vector"]}
    names["verbose"] = False
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (words[:1], mask[:1]), path, dynamo=dynamo, **names)
    assert import_(path, tmp_path) == 0
    _, made = answer(tmp_path, {"words": words.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        for seen, expected in zip(made.values(), network(words, mask), strict=True):
            assert np.allclose(seen, expected.numpy(), atol=1e-4)
