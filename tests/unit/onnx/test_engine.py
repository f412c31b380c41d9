"""A real onnxruntime session on the CPU, and on CUDA if there is a device."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.errors import EngineError, ManifestError, RowsFailed
from service.models.manifest import MODEL_FILE, TensorSpec, read_manifest
from service.onnx import engine as engine_module
from service.onnx.engine import TRIES, WARM_UP_SECONDS, Engine, bucket_sizes
from service.onnx.session import EngineOptions
from tests.support.models import (
    IMAGES,
    LABEL,
    LATENT,
    PROBABILITIES,
    images,
    make_model,
    mean_classifier,
    ramp_generator,
    write_model,
    z_spec,
)

OPTIONS = EngineOptions("cpu", 0, 1, (1, 2, 4, 8))
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers() and shutil.which("nvidia-smi")
CUDA = pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device, or an onnxruntime without CUDA")


@pytest.fixture(
    params=[
        OPTIONS,
        pytest.param(replace(OPTIONS, provider="cuda"), marks=[pytest.mark.gpu, CUDA]),
        pytest.param(replace(OPTIONS, provider="cuda", cuda_graphs=False), marks=[pytest.mark.gpu, CUDA]),
        pytest.param(replace(OPTIONS, provider="cuda", pinned_memory=False), marks=[pytest.mark.gpu, CUDA]),
        pytest.param(replace(OPTIONS, provider="cuda", overlap_copies=False), marks=[pytest.mark.gpu, CUDA]),
    ],
    ids=["cpu", "cuda", "cuda-without-graphs", "cuda-without-pinned-memory", "cuda-without-overlap"],
)
def options(request: pytest.FixtureRequest) -> EngineOptions:
    chosen: EngineOptions = request.param
    return chosen


def open_engine(folder: Path, options: EngineOptions = OPTIONS, **changes: object) -> Engine:
    manifest = read_manifest(folder)
    return Engine(folder / MODEL_FILE, manifest.model_copy(update=changes), options)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (256, (1, 2, 4, 8, 16, 32, 64, 128, 256))]
)
def test_buckets_are_powers_of_two_and_the_largest_batch(most: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(most) == sizes


def test_four_buckets_per_power_of_two_waste_at_most_a_fifth() -> None:
    sizes = bucket_sizes(256, per_octave=4)
    assert sizes[:13] == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20)
    assert sizes[-3:] == (192, 224, 256)
    assert all(following - 1 <= size * 1.25 for size, following in pairwise(sizes))


@pytest.mark.parametrize("split", [[5], [1, 4], [1, 1, 1, 1, 1], [2, 3]])
def test_a_batch_returns_its_parts_in_order(
    add_classifier: Callable[..., Path], options: EngineOptions, split: list[int]
) -> None:
    engine = open_engine(add_classifier(), options)
    batch = images(3, 1, 4, 1, 5)
    parts = [(part,) for part in np.split(batch, np.cumsum(split)[:-1])]
    (probabilities,) = engine.run(parts, 5)
    assert probabilities.shape == (5, 10)
    assert probabilities.argmax(axis=1).tolist() == [3, 1, 4, 1, 5]


def test_padding_never_reaches_the_outputs(
    add_classifier: Callable[..., Path], options: EngineOptions
) -> None:
    engine = open_engine(add_classifier(), options)
    engine.run([(images(*range(8)),)], 8)
    (probabilities,) = engine.run([(images(9, 9, 9),)], 3)
    assert probabilities.argmax(axis=1).tolist() == [9, 9, 9]


def test_outputs_outlive_the_next_batch(add_classifier: Callable[..., Path], options: EngineOptions) -> None:
    engine = open_engine(add_classifier(), options)
    (first,) = engine.run([(images(7),)], 1)
    engine.run([(images(2),)], 1)
    assert first.argmax() == 7


def test_several_inputs_are_bound_by_name(add_generator: Callable[..., Path], options: EngineOptions) -> None:
    engine = open_engine(add_generator(), options)
    z = np.zeros((3, LATENT), np.float32)
    (pictures,) = engine.run([(z, np.array([0, 1, 2], np.int64))], 3)
    assert [picture[0, 0] for picture in pictures] == [0, 10, 20]


def test_a_fixed_bucket_computes_the_same_bytes_at_every_position(
    add_generator: Callable[..., Path], options: EngineOptions
) -> None:
    engine = open_engine(add_generator(), replace(options, buckets=(16,)))
    rng = np.random.default_rng(0)
    z, label = rng.normal(size=(16, LATENT)).astype(np.float32), np.arange(16) % 10
    (together,) = engine.run([(z, label)], 16)
    for row in range(16):
        (alone,) = engine.run([(z[row : row + 1], label[row : row + 1])], 1)
        assert np.array_equal(alone[0], together[row])


def test_every_run_of_a_bucket_uses_its_own_inputs(
    add_classifier: Callable[..., Path], options: EngineOptions
) -> None:
    engine = open_engine(add_classifier(), options)
    for run in range(3):  # with CUDA graphs the first run captures, the others replay
        for rows in engine.buckets:
            labels = [(run + rows + row) % 10 for row in range(rows)]
            (probabilities,) = engine.run([(images(*labels),)], rows)
            assert probabilities.argmax(axis=1).tolist() == labels


def test_batches_in_flight_return_their_own_outputs(
    add_classifier: Callable[..., Path], options: EngineOptions
) -> None:
    engine = open_engine(add_classifier(), options)
    engine.warm_up()
    for run in range(20):
        in_flight = []
        for place in range(engine.depth):
            labels = [(3 * run + place + row) % 10 for row in range(1 + run % 8)]
            in_flight.append((labels, engine.begin([(images(*labels),)], len(labels))))
        for labels, end in in_flight:
            assert end()[0].argmax(axis=1).tolist() == labels


@pytest.mark.parametrize(("most", "buckets"), [(None, (2, 4, 8)), (8, (2, 4, 8)), (5, (2, 4)), (1, (2,))])
def test_only_a_graph_with_convolutions_drops_large_buckets(
    add_classifier: Callable[..., Path], tmp_path: Path, most: int | None, buckets: tuple[int, ...]
) -> None:
    options = replace(OPTIONS, buckets=(2, 4, 8), convolution_rows=most)
    engine = open_engine(mean_classifier(tmp_path), options)
    engine.warm_up()
    assert engine.buckets == buckets
    (probabilities,) = engine.run([(np.full((2, 28, 28), 3, np.uint8),)], 2)
    # float32 sums of 784 terms
    assert np.allclose(probabilities[:, :2] * 255, [3, 252], atol=1e-3)
    assert open_engine(add_classifier(), options).buckets == (2, 4, 8)


def test_warm_up_times_every_bucket(add_classifier: Callable[..., Path], options: EngineOptions) -> None:
    engine = open_engine(add_classifier(), options)
    assert engine.seconds_for(1) == math.inf
    engine.warm_up()
    assert [engine.bucket_for(rows) for rows in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert all(0 < engine.seconds_for(rows) < 60 for rows in range(1, 9))


@pytest.mark.parametrize(
    ("slow", "kept"),
    [({8: 6.0}, (1, 2, 4)), ({8: 1.2}, (1, 2, 4, 8)), ({4: 6.0, 8: 6.0}, (1, 2)), ({1: 9.0}, (1, 2, 4, 8))],
    ids=["the largest", "within what noise does", "the two largest", "the smallest"],
)
def test_a_batch_size_that_is_slower_a_row_than_a_smaller_one_is_not_used_on_a_gpu(
    add_classifier: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    slow: dict[int, float],
    kept: tuple[int, ...],
) -> None:
    engine = open_engine(add_classifier())
    run = engine._time
    timed: list[int] = []

    def timing(size: int) -> float:
        run(size)
        timed.append(size)
        return 1e-3 * size * slow.get(size, 1.0)

    monkeypatch.setattr(engine, "_time", timing)
    engine._warm_up_gpu(lambda: False)
    assert engine.buckets == kept
    assert engine.slow_buckets == tuple(size for size in (1, 2, 4, 8) if size not in kept)
    assert ("are not used" in caplog.text) == bool(engine.slow_buckets)
    for size in engine.slow_buckets:
        assert timed.count(size) >= TRIES
    rows = max(kept)
    (probabilities,) = engine.run([(images(*range(rows)),)], rows)
    assert probabilities.argmax(axis=1).tolist() == list(range(rows))


def test_a_delay_of_one_run_leaves_no_batch_size_out(
    add_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(add_classifier())
    delayed = {8}

    def timing(size: int) -> float:
        factor = 100 if size in delayed and timed.count(size) == 1 else 1
        timed.append(size)
        return 1e-3 * size * factor

    timed: list[int] = []
    monkeypatch.setattr(engine, "_time", timing)
    engine._warm_up_gpu(lambda: False)
    assert engine.buckets == (1, 2, 4, 8)


def test_a_busy_cpu_leaves_no_batch_size_out(
    add_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other work interrupts long runs at every try and short ones seldom, so times say nothing of a size."""
    engine = open_engine(add_classifier())
    monkeypatch.setattr(engine, "_time", lambda size: 1e-3 * size**3)
    engine.warm_up()
    assert (engine.buckets, engine.slow_buckets) == ((1, 2, 4, 8), ())


MEMORY_FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from service.errors import OutOfMemory
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions

folder, mebibytes = Path(sys.argv[1]), int(sys.argv[2])
engine = Engine(folder / MODEL_FILE, read_manifest(folder), EngineOptions("cpu", 0, 1, (4, 256, 512)))
images = np.arange(512, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
engine.run([(images[:4],)], 4)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + mebibytes * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
for rows in (512, 3):
    try:
        (outputs,) = engine.run([(images[:rows],)], rows)
        print(rows, outputs[:, 0].tolist() == images[:rows, 0, 0].astype(float).tolist())
    except OutOfMemory as error:
        print(rows, error)
"""
"""Runs 512 rows and then 3, in a process that may take some MiB more: a row takes 0.2 MiB."""


def run_with_full_memory(folder: Path, mebibytes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEMORY_FULL, str(folder), str(mebibytes)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


@pytest.fixture
def spacious(tmp_path: Path) -> Path:
    """A model that repeats each image's 784 pixels 64 times in float32 to find their largest."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Tile", ["floats", "repeats"], ["many"]),
        helper.make_node("Sin", ["many"], ["sines"]),
        helper.make_node("ReduceMax", ["many"], ["largest"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMin", ["sines"], ["smallest"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["largest", "last"], ["first"]),
        helper.make_node("Unsqueeze", ["smallest", "last"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 8, 8], np.int64), "repeats"),
        numpy_helper.from_array(np.array([1], np.int64), "last"),
    ]
    probabilities = PROBABILITIES.model_copy(update={"shape": (-1, 2)})
    return write_model(
        tmp_path,
        make_model(nodes, constants, (IMAGES,), (probabilities,)),
        name="spacious",
        task="classification",
        inputs=(IMAGES,),
        outputs=(probabilities,),
        labels=("a", "b"),
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced by Linux")
def test_a_batch_that_memory_is_too_small_for_runs_in_halves(spacious: Path) -> None:
    run = run_with_full_memory(spacious, 150)
    assert run.stdout.splitlines() == ["512 True", "3 True"]
    assert (
        "spacious version 1: this machine's memory is full: a batch of 512 rows did not fit (" in run.stderr
    )
    assert "its 512 rows are run in two halves" in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced by Linux")
def test_memory_too_small_even_for_halves_raises_an_error_and_the_next_batch_runs(spacious: Path) -> None:
    lines = run_with_full_memory(spacious, 20).stdout.splitlines()
    assert lines[0].startswith(
        "512 spacious version 1: this machine's memory is full: a batch of 256 rows did not fit ("
    )
    assert "bytes were wanted at once); lower max_batch_size, or serve fewer models. Cause: " in lines[0]
    assert lines[-1] == "3 True"


DEVICE_FULL = """
import sys
import numpy as np
from dataclasses import replace
from pathlib import Path
from service.errors import OutOfMemory
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from tests.support.device import MEBIBYTE, full_device

folder, free, graphs = Path(sys.argv[1]), int(sys.argv[2]) * MEBIBYTE, sys.argv[3] == "graphs"
options = EngineOptions("cuda", 0, 1, (4, 256, 512), cuda_graphs=graphs)
engine = Engine(folder / MODEL_FILE, read_manifest(folder), options)
images = np.arange(512, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)

def run(rows):
    try:
        (outputs,) = engine.run([(images[:rows],)], rows)
        print(rows, outputs[:, 0].tolist() == images[:rows, 0, 0].astype(float).tolist())
    except OutOfMemory as error:
        print(rows, error)

run(3)
with full_device(free):
    run(512)
    run(3)
run(512)
"""
"""Runs 3 rows, 512 while the device has some MiB left, 3 again, and 512 when the memory is free again."""


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("graphs", ["graphs", "no graphs"])
@pytest.mark.parametrize("free", [300, 20])
def test_a_batch_that_the_device_is_too_full_for_fails_alone(spacious: Path, free: int, graphs: str) -> None:
    """With 300 MiB it fits, perhaps in halves; with 20 not even these do. What runs afterwards is right."""
    command = [sys.executable, "-c", DEVICE_FULL, str(spacious), str(free), graphs]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    print(run.stdout, run.stderr)
    first, full, *after = run.stdout.splitlines()
    assert [first, *after] == ["3 True", "3 True", "512 True"]
    if free == 300:
        assert full == "512 True"
    else:
        assert "its 512 rows are run in two halves" in run.stderr
        assert "the memory of GPU 0 is full: a batch of 256 rows did not fit (" in full
        assert "lower max_batch_size, or serve fewer models or pods on this device" in full


@pytest.mark.gpu
@CUDA
def test_a_model_with_a_node_that_no_gpu_runs_gives_the_same_answers_on_one(tmp_path: Path) -> None:
    """onnxruntime's CUDA provider has no Mean, and captures no graph that has one."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Mean", ["flat", "flat"], ["mean"]),
        helper.make_node("ReduceMax", ["mean"], ["probabilities"], axes=[1]),
    ]
    probabilities = PROBABILITIES.model_copy(update={"shape": (-1, 1)})
    folder = write_model(
        tmp_path,
        make_model(nodes, [], (IMAGES,), (probabilities,)),
        name="mean",
        task="classification",
        inputs=(IMAGES,),
        outputs=(probabilities,),
        labels=("a",),
    )
    engine = open_engine(folder, replace(OPTIONS, provider="cuda"))
    engine.warm_up()
    images = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    for rows in (1, 8, 3):
        (largest,) = engine.run([(images[:rows],)], rows)
        assert largest[:, 0].tolist() == [float(row) for row in range(rows)]


def test_cpu_times_grow_with_the_rows_and_are_interpolated(
    add_classifier: Callable[..., Path],
) -> None:
    engine = open_engine(add_classifier(), replace(OPTIONS, buckets=bucket_sizes(10, per_octave=4)))
    engine.warm_up()
    seconds = [engine.seconds_for(size) for size in engine.buckets]
    assert seconds == sorted(seconds)
    assert engine.seconds_for(3) == pytest.approx((engine.seconds_for(2) + engine.seconds_for(4)) / 2)


@pytest.mark.parametrize("row_seconds", [1e-6, 0.01, 0.05, 5.0])
@pytest.mark.parametrize("buckets", [(1,), (16,), (3, 5), bucket_sizes(32, per_octave=4)], ids=str)
def test_however_slow_a_model_is_its_warm_up_on_a_cpu_is_short(
    add_classifier: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    row_seconds: float,
    buckets: tuple[int, ...],
) -> None:
    engine = open_engine(add_classifier(), replace(OPTIONS, buckets=buckets))
    ran: list[int] = []

    def timing(size: int) -> float:
        ran.append(size)
        return row_seconds * size

    monkeypatch.setattr(engine, "_time", timing)
    engine.warm_up()
    assert row_seconds * sum(ran) <= 2 * WARM_UP_SECONDS + 3 * row_seconds * buckets[0]
    for size in buckets:
        assert engine.seconds_for(size) == pytest.approx(row_seconds * size)
    if row_seconds == 1e-6:
        assert {buckets[-1], *(size for size in buckets if size.bit_count() == 1)} <= {*ran}


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_an_unavailable_provider_raises_an_error(add_classifier: Callable[..., Path], provider: str) -> None:
    folder = add_classifier()
    with pytest.raises(EngineError, match=f"provider {provider} "):
        open_engine(folder, EngineOptions(provider, 99, 1, (1,)))  # type: ignore[arg-type]


def test_a_broken_graph_raises_an_error_that_names_the_file(add_classifier: Callable[..., Path]) -> None:
    folder = add_classifier()
    (folder / MODEL_FILE).write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"model\.onnx cannot be loaded"):
        open_engine(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs": (IMAGES.model_copy(update={"name": "x"}),)},
            r"inputs \['images'\], the manifest names \['x'\]",
        ),
        (
            {"inputs": (IMAGES.model_copy(update={"datatype": "FP32"}),)},
            r"input images is tensor\(uint8\) in the graph, the manifest says tensor\(float\)",
        ),
        (
            {"outputs": (PROBABILITIES.model_copy(update={"shape": (-1, 9)}),)},
            r"output probabilities has shape \['batch', 10\] in the graph",
        ),
    ],
)
def test_a_manifest_that_contradicts_the_graph_raises_an_error(
    add_classifier: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    folder = add_classifier()
    with pytest.raises(ManifestError, match=message):
        open_engine(folder, **changes)


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A graph that fails for a label above 9."""
    nodes = [
        helper.make_node("Cast", ["label"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["probabilities"]),
    ]
    table = numpy_helper.from_array(np.eye(10, dtype=np.float32), "table")
    one_label = TensorSpec(name="label", datatype="INT64", shape=(-1,))
    folder = write_model(
        tmp_path_factory.mktemp("lookup"),
        make_model(nodes, [table], (one_label,), (PROBABILITIES,)),
        name="lookup",
        task="classification",
        inputs=(one_label,),
        outputs=(PROBABILITIES,),
    )
    return open_engine(folder)


def test_a_failing_graph_raises_an_engine_error_and_can_run_again(lookup: Engine) -> None:
    with pytest.raises(EngineError, match="out of data bounds"):
        lookup.run([(np.array([10]),)], 1)
    (probabilities,) = lookup.run([(np.array([9]),)], 1)
    assert probabilities.argmax() == 9


@given(st.lists(st.integers(0, 9), min_size=2, max_size=8), st.sets(st.integers(0, 7), min_size=1), st.data())
def test_only_the_rows_that_fail_are_lost(
    lookup: Engine, labels: list[int], wrong: set[int], data: st.DataObject
) -> None:
    """And none of them is the padding of a later batch, which would fail with it."""
    sent = np.array([10 if row in wrong else label for row, label in enumerate(labels)])
    failed = sent == 10
    if not failed.any():
        return
    with pytest.raises(RowsFailed, match="out of data bounds") as caught:
        lookup.run([(sent,)], len(sent))
    assert caught.value.failed.tolist() == failed.tolist()
    (probabilities,) = caught.value.outputs
    assert probabilities[~failed].argmax(axis=1).tolist() == sent[~failed].tolist()
    later = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8)))
    with counting_runs(lookup) as runs:
        assert lookup.run([(later,)], len(later))[0].argmax(axis=1).tolist() == later.tolist()
    assert len(runs) == 1


def test_a_batch_whose_rows_all_fail_is_given_up_early(
    lookup: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOST_RUNS_APART", 5)
    with counting_runs(lookup) as runs, pytest.raises(RowsFailed) as caught:
        lookup.run([(np.full(8, 10),)], 8)
    assert caught.value.failed.all()
    assert runs == [8, 4, 4, 2, 2, 2]


@contextmanager
def counting_runs(engine: Engine) -> Iterator[list[int]]:
    """Note the rows of each run."""
    rows: list[int] = []
    launch = engine._launch

    def note(bucket: Any, size: int) -> Any:
        rows.append(size)
        return launch(bucket, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_launch", note)
        yield rows


def exact_generator() -> onnx.ModelProto:
    """A generator whose floats are single products: no kernel computes other bits."""
    graph = ramp_generator()
    product = graph.graph.node[0]
    product.op_type = "Mul"
    del product.input[:]
    product.input.extend(["first", "row"])
    graph.graph.node.insert(0, helper.make_node("Slice", ["z", "none", "one", "one"], ["first"]))
    graph.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0], np.int64), "none"),
            numpy_helper.from_array(np.linspace(1, 99, 784, dtype=np.float32)[None], "row"),
        ]
    )
    return graph


def write_generator(models_dir: Path, graph: onnx.ModelProto) -> Path:
    onnx.checker.check_model(graph)
    inputs = z_spec(), LABEL
    return write_model(models_dir, graph, name="g", task="generation", inputs=inputs, outputs=(IMAGES,))


def sized_generator(models_dir: Path, odd_size: int) -> Path:
    """A generator whose floats are larger in batches of one size, by too little to change an image."""
    graph = exact_generator()
    (offset,) = (node for node in graph.graph.node if "column" in node.input)
    offset.input[1] = "shifted"
    nodes = [
        helper.make_node("Shape", ["z"], ["shape_of_z"], start=0, end=1),
        helper.make_node("Equal", ["shape_of_z", "odd_size"], ["is_odd"]),
        helper.make_node("Cast", ["is_odd"], ["one_if_odd"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["one_if_odd", "little"], ["shift"]),
        helper.make_node("Add", ["column", "shift"], ["shifted"]),
    ]
    graph.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([odd_size], np.int64), "odd_size"),
            numpy_helper.from_array(np.array(1e-4, np.float32), "little"),
        ]
    )
    place = list(graph.graph.node).index(offset)
    for node in reversed(nodes):
        graph.graph.node.insert(place, node)
    return write_generator(models_dir, graph)


def drawn(engine: Engine, rows: int) -> np.ndarray:
    z = np.random.default_rng(0).normal(size=(8, LATENT)).astype(np.float32)
    (pictures,) = engine.run([(z[:rows], np.arange(rows))], rows)
    return pictures


def test_a_fixed_model_uses_every_size_that_computes_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(write_generator(tmp_path, exact_generator()), replace(OPTIONS, fixed_size=4))
    with caplog.at_level("INFO"):
        engine.warm_up()
    assert engine.buckets == (1, 2, 4, 8)
    assert "batches of 1, 2, 4, 8 rows give each row the same bits" in caplog.text
    for rows in range(1, 9):
        assert np.array_equal(drawn(engine, rows), drawn(engine, 8)[:rows])


@pytest.mark.parametrize("odd_size", [1, 8])
def test_a_size_whose_images_only_seem_equal_is_left_out(tmp_path: Path, odd_size: int) -> None:
    folder = sized_generator(tmp_path, odd_size)
    free = open_engine(folder)
    assert np.array_equal(drawn(free, 8)[:1], drawn(free, 1))  # nothing to see in the images
    engine = open_engine(folder, replace(OPTIONS, fixed_size=4))
    engine.warm_up()
    assert engine.differing_buckets == (odd_size,)
    assert engine.buckets == tuple(size for size in (1, 2, 4, 8) if size != odd_size)


def test_a_fixed_size_unlike_all_others_is_used_alone(tmp_path: Path) -> None:
    engine = open_engine(sized_generator(tmp_path, 4), replace(OPTIONS, fixed_size=4))
    engine.warm_up()
    assert (engine.buckets, engine.differing_buckets) == ((4,), (1, 2, 8))
    assert drawn(engine, 3).shape == (3, 28, 28)


def test_a_model_whose_rows_depend_on_each_other_runs_in_the_fixed_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = exact_generator()
    graph.graph.node[0].input[0] = "scaled"
    for node in (
        helper.make_node("Div", ["z", "largest"], ["scaled"]),
        helper.make_node("ReduceMax", ["z"], ["largest"], keepdims=0),
    ):
        graph.graph.node.insert(0, node)
    engine = open_engine(write_generator(tmp_path, graph), replace(OPTIONS, fixed_size=4))
    engine.warm_up()
    assert engine.buckets == (4,)
    assert "a row's bits depend on its place or on the rest of its batch" in caplog.text


def test_a_warm_up_is_stopped_while_it_compares_sizes(add_generator: Callable[..., Path]) -> None:
    engine = open_engine(add_generator(), replace(OPTIONS, fixed_size=4))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6  # after the four sizes were timed

    with pytest.raises(EngineError, match="the warm-up was stopped"):
        engine.warm_up(stop)


def test_convolutions_keep_a_fixed_size_that_is_large(tmp_path: Path) -> None:
    chosen = replace(OPTIONS, convolution_rows=2, fixed_size=8)
    engine = open_engine(mean_classifier(tmp_path), chosen)
    assert engine.buckets == (1, 2, 8)


def test_a_model_whose_sizes_cannot_be_compared_is_served_in_the_fixed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(write_generator(tmp_path, exact_generator()), replace(OPTIONS, fixed_size=4))
    monkeypatch.setattr("service.onnx.comparable.unrounded_tensors", lambda _: ["missing"])
    engine.warm_up()
    assert engine.buckets == (4,)
    assert "its batch sizes cannot be compared" in caplog.text
    assert drawn(engine, 3).shape == (3, 28, 28)
