"""The command `import`: networks as other programs export them become classifiers of pictures."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from torch import nn

from service.models.manifest import MODEL_FILE, Manifest, read_manifest
from service.models.metadata import manifest_of_graph
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from training.__main__ import main
from training.imports.normalization import Normalization

HEIGHT, WIDTH, CLASSES = 6, 8, 4
LIGHT_MODELS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def pictures(rows: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, *shape), np.uint8)


@contextmanager
def editing(path: Path) -> Iterator[onnx.ModelProto]:
    """A graph whose file holds what the block makes of it."""
    model = onnx.load(path)
    yield model
    onnx.save(model, path)


@dataclass(frozen=True)
class Exported:
    """A linear classifier as some program exports it.

    channels: 0 for grey images without an axis for them. ending: what the network does after its linear
    layer. batch: fixed, or None. token: whether a constant stands before the pixels of each row, as a
    Transformer's class token.
    """

    channels: int = 3
    channels_first: bool = True
    dtype: type[np.floating[Any]] = np.float32
    ending: str = "logits"
    batch: int | None = 1
    opset: int = 17
    token: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a row."""
        if not self.channels:
            return (HEIGHT, WIDTH)
        first = (self.channels, HEIGHT, WIDTH)
        return first if self.channels_first else (HEIGHT, WIDTH, self.channels)

    @property
    def served_shape(self) -> tuple[int, ...]:
        """The shape of the pixels that are posted for a row."""
        return (HEIGHT, WIDTH, self.channels) if self.channels else (HEIGHT, WIDTH)

    @property
    def classes(self) -> int:
        """The columns of the linear layer."""
        return 1 if self.ending.startswith("one") else CLASSES

    def weights(self) -> np.ndarray:
        """The linear layer: of the token, if there is one, and the pixels."""
        rng = np.random.default_rng(0)
        features = int(np.prod(self.shape)) + self.token
        return rng.normal(0, 0.3, (features, self.classes)).astype(self.dtype)

    def probabilities(self, pixels: np.ndarray, mean: float, std: float, *, bgr: bool) -> np.ndarray:
        """What the network means for pixels, (rows, *served_shape) uint8, computed by numpy."""
        pixels = pixels.reshape(len(pixels), HEIGHT, WIDTH, -1)
        values = (pixels[..., ::-1] if bgr else pixels) / 255.0
        values = ((values - mean) / std).astype(self.dtype).astype(np.float64)
        values = values.transpose(0, 3, 1, 2) if self.channels_first else values
        features = values.reshape(len(values), -1)
        if self.token:
            features = np.concatenate([np.full((len(values), 1), 2.0), features], axis=1)
        logits = features @ self.weights().astype(np.float64)
        if self.classes == 1:
            second = 1 / (1 + np.exp(-logits))
            return np.concatenate([1 - second, second], axis=1)
        return softmax(logits)

    def write(self, path: Path) -> Path:
        """Write the network to a file."""
        datatype = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        constants = {"weights": self.weights(), "flat": np.array([self.batch or 0, int(np.prod(self.shape))])}
        nodes = [helper.make_node("Reshape", ["images", "flat"], ["pixels"])]
        features = "pixels"
        if self.token:
            constants |= {"token": np.full((self.batch or 1, 1), 2, self.dtype)}
            nodes.append(helper.make_node("Concat", ["token", "pixels"], ["features"], axis=1))
            features = "features"
        nodes.append(helper.make_node("MatMul", [features, "weights"], ["logits"]))
        nodes += self._ending(constants)
        last = nodes[-1].output[0]
        batch = self.batch or "batch"
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("images", datatype, [batch, *self.shape])],
            [helper.make_tensor_value_info(last, datatype, None)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opset = helper.make_opsetid("", self.opset)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
        return path

    def _ending(self, constants: dict[str, np.ndarray]) -> list[NodeProto]:
        if self.ending == "softmax":
            return [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)]
        if self.ending == "rounded softmax":
            constants["rounding"] = np.array(1 + 2**-10, self.dtype)
            softmax = helper.make_node("Softmax", ["logits"], ["shares"], axis=1)
            return [softmax, helper.make_node("Mul", ["shares", "rounding"], ["probabilities"])]
        if self.ending == "one sigmoid":
            return [helper.make_node("Sigmoid", ["logits"], ["probability"])]
        if self.ending == "convolution":
            constants["map"] = np.array([self.batch or 0, CLASSES, 1, 1])
            return [helper.make_node("Reshape", ["logits", "map"], ["scores"])]
        return []


NETWORKS = st.builds(
    Exported,
    channels=st.sampled_from([0, 1, 3]),
    channels_first=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16]),
    ending=st.sampled_from(["logits", "softmax", "convolution", "one logit", "one sigmoid"]),
    batch=st.sampled_from([None, 1, 5]),
    opset=st.integers(8, 22),
    token=st.booleans(),
).filter(lambda network: not (network.token and network.batch is None))


def import_(network: Path, models: Path, *more: str) -> int:
    return main(["import", str(network), "brought", "--models-dir", str(models), *more])


def answer(models: Path, pixels: np.ndarray) -> tuple[Manifest, np.ndarray]:
    """What the published model gives for pixels, as the service loads it."""
    folder = models / "brought" / "1"
    manifest = read_manifest(folder)
    Engine(folder / MODEL_FILE, manifest, EngineOptions("cpu", 0, 1, (1, 2, 8))).warm_up()
    session = onnxruntime.InferenceSession(folder / MODEL_FILE)
    (probabilities,) = session.run(["probabilities"], {manifest.inputs[0].name: pixels})
    return manifest, probabilities


@hypothesis_settings(max_examples=30)
@given(network=NETWORKS, bgr=st.booleans(), mean=st.integers(-4, 4), std=st.integers(1, 8))
def test_published_graph_gives_the_probabilities_of_the_network(
    tmp_path_factory: pytest.TempPathFactory, network: Exported, bgr: bool, mean: int, std: int
) -> None:
    folder = tmp_path_factory.mktemp("import")
    flags = ["--mean", str(mean / 4), "--std", str(std / 4), *(["--bgr"] if bgr else [])]
    if not network.channels:  # which may be anything else
        flags += ["--preprocess", "resize"]
    if network.ending == "one logit":  # which may lie in 0..1
        flags += ["--holds", "logits"]
    assert import_(network.write(folder / "network.onnx"), folder, *flags) == 0
    pixels = pictures(7, *network.served_shape)
    manifest, probabilities = answer(folder, pixels)
    assert manifest.inputs[0].shape == (-1, *network.served_shape)
    expected = network.probabilities(pixels, mean / 4, std / 4, bgr=bgr)
    # float16 has 11 bits: a logit of 16 is exact to 0.01.
    tolerance = 1e-4 if network.dtype is np.float32 else 0.05
    assert np.allclose(probabilities, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("network", "added"),
    [
        (Exported(ending="logits"), "classes: 4, after a softmax that was added"),
        (Exported(ending="softmax"), "classes: 4\n"),
        (Exported(ending="rounded softmax"), "classes: 4\n"),  # a forest's may add up to 1.0000002
        (Exported(ending="one logit"), "classes: 2, after a sigmoid that was added"),
        (Exported(ending="one sigmoid"), "classes: 2\n"),
    ],
    ids=str,
)
def test_summary_tells_input_normalisation_and_classes(
    network: Exported, added: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_(network.write(tmp_path / "network.onnx"), tmp_path, "--mean", "0.5", "--std", "0.25") == 0
    told = capsys.readouterr().err
    assert "input: UINT8 [-1, 6, 8, 3], pictures by resize\n" in told
    assert "the network gets (pixel / 255 - (0.5)) / (0.25)\n" in told
    assert added in told
    assert "batches of any size, no longer only of 1\n" in told


@pytest.mark.parametrize(
    ("normalization", "words"),
    [
        (Normalization(), "pixel / 255"),
        (Normalization(scale=1.0, bgr=True), "pixel / 1 of the channels blue, green, red"),
        (Normalization(mean=(0.1, 0.2, 0.3)), "(pixel / 255 - (0.1 0.2 0.3)) / (1)"),
        (Normalization(std=(0.5,)), "(pixel / 255 - (0)) / (0.5)"),
    ],
)
def test_a_normalisation_reads_like_its_formula(normalization: Normalization, words: str) -> None:
    assert str(normalization) == words


def test_labels_are_read_from_a_file_and_travel_in_the_graph(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\ufeffcat\ndog\nhaus\u00e4\nship\n", encoding="utf-8")
    network = Exported().write(tmp_path / "network.onnx")
    assert import_(network, tmp_path, "--labels", str(labels), "--preprocess", "center-crop") == 0
    folder = tmp_path / "brought" / "1"
    published = read_manifest(folder)
    assert published.labels == ("cat", "dog", "haus\u00e4", "ship")
    assert published.preprocess == "center-crop"
    (folder / "manifest.json").unlink()
    bare = manifest_of_graph(folder)
    assert (bare.labels, bare.preprocess) == (published.labels, published.preprocess)


def test_the_next_import_is_the_next_version(tmp_path: Path) -> None:
    network = Exported().write(tmp_path / "network.onnx")
    assert [import_(network, tmp_path), import_(network, tmp_path)] == [0, 0]
    assert [read_manifest(folder).version for folder in sorted((tmp_path / "brought").iterdir())] == [1, 2]


def test_a_network_of_numbers_keeps_its_input(tmp_path: Path) -> None:
    """A table's rows, say: only the fixed batch and the logits are changed."""
    network = Exported(channels=2, channels_first=True)  # two channels are no picture
    assert import_(network.write(tmp_path / "network.onnx"), tmp_path) == 0
    values = np.random.default_rng(0).random((5, 2, HEIGHT, WIDTH), np.float32)
    manifest, probabilities = answer(tmp_path, values)
    assert (manifest.inputs[0].datatype, manifest.inputs[0].shape) == ("FP32", (-1, 2, HEIGHT, WIDTH))
    logits = values.reshape(5, -1) @ network.weights()
    assert np.allclose(probabilities, softmax(logits), atol=1e-5)


def test_a_dynamically_quantised_network_may_round_a_batch_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Exported()
    quantize_dynamic(network.write(tmp_path / "float.onnx"), tmp_path / "network.onnx")
    assert import_(tmp_path / "network.onnx", tmp_path) == 0
    assert "a row's answer depends a little on its batch" in capsys.readouterr().err
    pixels = pictures(7, HEIGHT, WIDTH, 3)
    _, probabilities = answer(tmp_path, pixels)
    assert np.allclose(probabilities, network.probabilities(pixels, 0, 1, bgr=False), atol=0.1)


def test_weights_may_be_reshaped(tmp_path: Path) -> None:
    """A bias, say, whose first axis then has the size of the batch by chance."""
    network = Exported()
    path = network.write(tmp_path / "network.onnx")
    constants = {"bias": np.zeros(CLASSES, np.float32), "wide": np.array([1, -1])}
    with editing(path) as model:
        model.graph.initializer.extend(
            numpy_helper.from_array(each, name) for name, each in constants.items()
        )
        model.graph.node.append(helper.make_node("Reshape", ["bias", "wide"], ["wide_bias"]))
        model.graph.node.append(helper.make_node("Add", ["logits", "wide_bias"], ["sums"]))
        model.graph.output[0].name = "sums"
    assert import_(path, tmp_path) == 0
    pixels = pictures(7, HEIGHT, WIDTH, 3)
    _, probabilities = answer(tmp_path, pixels)
    assert np.allclose(probabilities, network.probabilities(pixels, 0, 1, bgr=False), atol=1e-4)


def with_zipmap(path: Path, names: list[str]) -> Path:
    """A network as skl2onnx writes it: its output is a dictionary for each row."""
    node = helper.make_node(
        "ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml", classlabels_strings=names
    )
    value = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    with editing(Exported(ending="softmax").write(path)) as model:
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        output = helper.make_value_info("maps", helper.make_sequence_type_proto(value))
        model.graph.output[0].CopyFrom(output)
    return path


def test_dictionaries_of_probabilities_become_a_tensor(tmp_path: Path) -> None:
    """They name the classes."""
    names = ["setosa", "versicolor", "virginica", "other"]
    path = with_zipmap(tmp_path / "network.onnx", names)
    assert import_(path, tmp_path) == 0
    manifest, probabilities = answer(tmp_path, np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))
    assert manifest.labels == tuple(names)
    assert probabilities.shape == (2, CLASSES)


TIMM = {
    "label_names": ["a", "b", "c", "d"],
    "pretrained_cfg": {"input_size": [3, 6, 8], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}
NAMES = {"id2label": {"1": "b", "0": "a", "2": "c", "3": "d"}}
PROCESSOR = {
    "size": {"height": 6, "width": 8},
    "rescale_factor": 1 / 255,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def free_network(path: Path) -> Path:
    """A network whose axes are all free, as optimum exports it: the mean colour decides."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
    ]
    axes = ["batch_size", "num_channels", "height", "width"]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", CLASSES])],
        [numpy_helper.from_array(np.eye(3, CLASSES, dtype=np.float32), "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("files", "preprocess"),
    [
        ({"config.json": TIMM}, "center-crop"),
        ({"config.json": NAMES, "preprocessor_config.json": PROCESSOR}, "resize"),
        (
            {
                "config.json": NAMES,
                "preprocessor_config.json": PROCESSOR
                | {"size": 9, "do_center_crop": True, "crop_size": {"height": 6, "width": 8}},
            },
            "center-crop",
        ),
    ],
    ids=["timm", "transformers", "transformers with a crop"],
)
@pytest.mark.parametrize("graph", ["model.onnx", "onnx/model_quantized.onnx", "../onnx/model.onnx"])
def test_files_beside_the_network_describe_it(
    graph: str, files: dict[str, Any], preprocess: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "onnx" if graph.startswith("..") else tmp_path
    for folder in (hub, (hub / graph).parent):
        folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (hub / name).write_text(json.dumps(content))
    assert import_(free_network(hub / graph), tmp_path) == 0
    assert "the network gets (pixel / 255 - (0.1 0.2 0.3)) / (0.4 0.5 0.6)\n" in capsys.readouterr().err
    pixels = pictures(2, 6, 8, 3)
    manifest, probabilities = answer(tmp_path, pixels)
    assert manifest.inputs[0].shape == (-1, 6, 8, 3)
    assert (manifest.labels, manifest.preprocess) == (("a", "b", "c", "d"), preprocess)
    colour = (pixels.mean(axis=(1, 2)) / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    assert np.allclose(probabilities, softmax(np.pad(colour, [(0, 0), (0, 1)])), atol=1e-5)


def test_the_command_line_wins_over_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    flags = ["--shape", "3", "4", "5", "--mean", "0", "--scale", "1", "--preprocess", "resize"]
    assert import_(free_network(tmp_path / "model.onnx"), tmp_path, *flags) == 0
    told = capsys.readouterr().err
    assert "input: UINT8 [-1, 4, 5, 3], pictures by resize\n" in told
    assert "the network gets (pixel / 1 - (0)) / (0.4 0.5 0.6)\n" in told


def test_ultralytics_writes_the_names_into_the_graph(tmp_path: Path) -> None:
    path = Exported(ending="softmax").write(tmp_path / "network.onnx")
    with editing(path) as model:
        helper.set_model_props(
            model, {"task": "classify", "names": "{0: 'cat', 1: 'dog', 2: \"ship's\", 3: 'x'}"}
        )
    assert import_(path, tmp_path) == 0
    manifest = read_manifest(tmp_path / "brought" / "1")
    assert (manifest.labels, manifest.preprocess) == (("cat", "dog", "ship's", "x"), "center-crop")


def mixed(path: Path) -> Path:
    """A network that compares the rows of a batch with each other."""
    with editing(Exported().write(path)) as model:
        model.graph.node.append(helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0]))
        model.graph.node.append(helper.make_node("Mul", ["logits", "mean"], ["products"]))
        model.graph.output[0].name = "products"
    return path


def without_batch_axis(path: Path) -> Path:
    """A network whose only row has lost its axis in between, as torch.onnx.export may write it."""
    with editing(Exported().write(path)) as model:
        (flat,) = (each for each in model.graph.initializer if each.name == "flat")
        flat.CopyFrom(numpy_helper.from_array(np.array([-1]), "flat"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, CLASSES]), "rows"))
        model.graph.node.append(helper.make_node("Reshape", ["logits", "rows"], ["row"]))
        model.graph.output[0].name = "row"
    return path


def several_inputs(path: Path) -> Path:
    with editing(Exported().write(path)) as model:
        model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    return path


def truncated(path: Path) -> Path:
    Exported().write(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def file_of(content: bytes) -> Any:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def of_strings(path: Path) -> Path:
    with editing(Exported().write(path)) as model:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    return path


def with_latin_1(path: Path) -> Path:
    """A damaged file: the name of a tensor is no longer UTF-8."""
    content = Exported().write(path).read_bytes()
    path.write_bytes(content.replace(b"weights", b"weight\xe9"))
    return path


def hints_beside(name: str, content: str) -> Any:
    def write(path: Path) -> Path:
        (path.parent / name).write_text(content)
        return free_network(path)

    return write


@pytest.mark.parametrize(
    ("write", "flags", "message"),
    [
        (mixed, [], "a batch of 3 rows gives other probabilities than each row alone, expected the same"),
        (
            without_batch_axis,
            [],
            "it does not run in a batch of 3; export the network with a free batch axis",
        ),
        (several_inputs, [], r"the inputs are \['images', 'mask'\], expected one"),
        (truncated, [], "network.onnx is no ONNX graph"),
        (file_of(b"PK\x03\x04 as torch.save writes it"), [], "network.onnx is no ONNX graph"),
        (file_of(b""), [], "network.onnx is no ONNX graph: it has no nodes"),
        (with_latin_1, [], "network.onnx is no ONNX graph: a name in it is not UTF-8"),
        (of_strings, [], "input images has datatype STRING, expected numbers"),
        (Exported(opset=7).write, [], "uses version 7 of ONNX's operators, expected at least 8"),
        (Exported().write, ["--shape", "3", "6", "9"], r"images is \(1, 3, 6, 8\), but --shape is 3 6 9"),
        (Exported().write, ["--mean", "1", "2"], "mean has 2 numbers, expected 1 or 3"),
        (Exported().write, ["--std", "0"], "of which scale and std are above 0"),
        (Exported().write, ["--scale", "nan"], "expected finite numbers"),
        (Exported().write, ["--output", "other"], "the outputs are logits .*, expected floats .* in other"),
        (Exported().write, ["--labels", "missing.txt"], "No such file or directory: 'missing.txt'"),
        (Exported().write, ["--labels", __file__], r"labels names \d+ classes, expected 4"),
        (Exported(channels=2).write, ["--std", "2"], r"rows of \[2, 6, 8\] are no pictures"),
        (Exported(channels=2).write, ["--preprocess", "resize"], "preprocess is resize, but the inputs are"),
        (
            Exported(ending="one sigmoid").write,
            ["--holds", "logits", "--shape", "3"],
            "expected a batch axis",
        ),
        (
            free_network,
            [],
            r"is \(batch_size, num_channels, height, width\); expected a batch axis and fixed",
        ),
        (hints_beside("config.json", "{"), [], "config.json is not JSON"),
        (
            hints_beside("config.json", '{"pretrained_cfg": {}}'),
            [],
            "are not those of a classifier: KeyError",
        ),
        (hints_beside("config.json", '{"id2label": {"1": "a"}}'), [], "not those of a classifier"),
        (hints_beside("preprocessor_config.json", '{"size": []}'), [], "not those of a classifier"),
    ],
)
def test_unusable_network_is_refused_in_one_line(
    write: Any, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    assert import_(write(tmp_path / "network.onnx"), models, *flags) in (1, 2)
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not models.exists() or not any(models.iterdir())


FLIPS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6)


@given(flips=FLIPS, zipmap=st.booleans(), data=st.data())
def test_damaged_network_is_imported_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], zipmap: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "network.onnx"
    if zipmap:
        with_zipmap(path, list("abcd"))
    else:
        Exported(token=data.draw(st.booleans()), ending="convolution").write(path)
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[place % len(content)] = value
    path.write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        status = import_(path, folder, "--holds", "logits")
    assert status == 0 or (status == 2 and told.getvalue().count("\n") == 1)


def test_ambiguous_output_needs_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sigmoid per class: its rows add up to no particular number."""
    path = Exported().write(tmp_path / "network.onnx")
    with editing(path) as model:
        model.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["each"]))
        model.graph.output[0].name = "each"
    assert import_(path, tmp_path) == 2
    assert "--holds says what they are" in capsys.readouterr().err
    assert import_(path, tmp_path, "--holds", "logits") == 0


class Transformer(nn.Module):
    """A small vision Transformer of torch's own layers, which move the batch to the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 13, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        token = self.token.expand(len(patches), -1, -1)
        logits: torch.Tensor = self.head(self.encoder(torch.cat([token, patches], 1) + self.places)[:, 0])
        return logits


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(32, CLASSES),
    )


class ChannelsLast(nn.Module):
    """As in ConvNeXt: torch's newer exporter gathers the pooled tensor from a flat one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normal = self.norm(self.stem(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        logits: torch.Tensor = self.head(nn.functional.adaptive_avg_pool2d(normal, 1).flatten(1))
        return logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporters warn of themselves
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("make", [convolutional, Transformer, ChannelsLast])
def test_torch_export_for_a_batch_of_one_takes_any_batch(
    make: Callable[[], nn.Module], dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, path = make().eval(), tmp_path / "network.onnx"
    torch.onnx.export(network, (torch.randn(1, 3, 12, 16),), path, dynamo=dynamo, verbose=False)
    flags = ["--mean", "0.4", "0.5", "0.6", "--std", "0.2", "--holds", "logits"]
    assert import_(path, tmp_path, *flags) == 0
    pixels = pictures(7, 12, 16, 3)
    _, probabilities = answer(tmp_path, pixels)
    values = torch.from_numpy((pixels / 255 - [0.4, 0.5, 0.6]) / 0.2).permute(0, 3, 1, 2).float()
    assert np.allclose(probabilities, network(values).softmax(1).detach().numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet", "light_resnet50"])
def test_networks_of_the_model_zoo_are_served(name: str, tmp_path: Path) -> None:
    """Their graphs as the zoo has them, for batches of one, with weights that onnx's own tests leave out."""
    assert import_(LIGHT_MODELS / f"{name}.onnx", tmp_path) == 0
    manifest, probabilities = answer(tmp_path, np.zeros((2, 224, 224, 3), np.uint8))
    assert probabilities.shape == (2, 1000)
    assert len(manifest.labels) == 1000
