"""The providers' options, and what is said when one of them stops a graph."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import onnx
import onnxruntime as ort
import pytest

from service.errors import OutOfMemory
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx import cuda, session
from service.onnx.session import PROVIDERS, EngineOptions, explained, providers_of
from service.serving.tuning import engine_options
from service.settings import load_settings

ROOT = Path(__file__).parents[3]
MEBIBYTE = 1024 * 1024
BOUNDED = EngineOptions("cuda", 0, 1, (1, 8), overlap_copies=False, max_device_memory_bytes=MEBIBYTE)

OUT_OF_MEMORY = """
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

ort.set_default_logger_severity(4)
memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(memory, ort.OrtArenaCfg(1024 * 1024, 1, -1, -1))
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Sin", ["e"], ["y"])]
graph = helper.make_graph(nodes, "graph", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
options = ort.SessionOptions()
options.add_session_config_entry("session.use_env_allocators", "1")
options.enable_mem_pattern = False
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
try:
    session.run(None, {"x": np.zeros(1024 * 1024, np.float32)})
except Exception as error:
    print(error)
"""
"""Prints what onnxruntime says when an arena of 1 MiB is full; this process has its CPU arena already."""


def test_the_bound_on_device_memory_is_an_option_of_the_cuda_provider(
    add_classifier: Callable[..., Path],
) -> None:
    ((name, options),) = providers_of(BOUNDED)
    assert name == PROVIDERS["cuda"]
    assert options["gpu_mem_limit"] == "1048576"
    settings = load_settings(["--provider", "cuda", "--no-overlap-copies"])
    manifest = read_manifest(add_classifier())
    ((_, unbounded),) = providers_of(engine_options(settings, manifest))
    assert "gpu_mem_limit" not in unbounded
    bounded = settings.model_copy(update={"max_device_memory_bytes": 3 * MEBIBYTE})
    assert engine_options(bounded, manifest).max_device_memory_bytes == 3 * MEBIBYTE


@pytest.mark.parametrize(("flags", "used"), [([], "0"), (["--tf32"], "1")])
def test_tf32_is_an_option_of_the_cuda_provider_and_off_by_default(
    flags: list[str], used: str, add_classifier: Callable[..., Path]
) -> None:
    settings = load_settings(["--provider", "cuda", "--no-overlap-copies", *flags])
    ((_, options),) = providers_of(engine_options(settings, read_manifest(add_classifier())))
    assert options["use_tf32"] == used


def test_what_tensorrt_leaves_to_cuda_uses_no_tf32() -> None:
    cuda = dict(providers_of(EngineOptions("tensorrt", 0, 1, (1, 8))))[PROVIDERS["cuda"]]
    assert cuda["use_tf32"] == "0"


@pytest.mark.slow
def test_a_full_arena_is_explained_by_the_setting_that_bounds_it() -> None:
    run = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=True)
    error = RuntimeError(run.stdout.strip())
    assert "Available memory of 1048576 is smaller than requested bytes of 4194304" in str(error)
    full = explained(error, BOUNDED, "mlp version 1", 64)
    assert isinstance(full, OutOfMemory)
    assert str(full) == (
        "mlp version 1: the memory of GPU 0 is full: a batch of 64 rows did not fit (4,194,304 bytes were "
        "wanted at once; max_device_memory_bytes is 1,048,576); raise max_device_memory_bytes, or lower "
        f"max_batch_size, or serve fewer models or pods on this device. Cause: {error}"
    )
    weights = str(explained(error, EngineOptions("cuda", 0, 1, (1,)), "mlp cannot be loaded"))
    assert "the model did not fit (4,194,304 bytes were wanted at once); serve fewer" in weights
    assert "max_" not in weights.partition(" Cause: ")[0]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"), True),
        (RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"), True),
        (
            RuntimeError("CUBLAS failure 3: the resource allocation failed ; GPU=0 ; hostname=vm"),
            True,
        ),
        (RuntimeError("cudaHostRegister returned cudaErrorMemoryAllocation (2): out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError("Unable to allocate 12 GiB"), True),
        (RuntimeError("indices element out of data bounds, idx=12"), False),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), False),
    ],
)
def test_full_memory_is_told_from_other_failures(error: Exception, full: bool) -> None:
    assert isinstance(explained(error, BOUNDED, "mlp version 1", 1), OutOfMemory) == full


@pytest.mark.parametrize("text", ["indices out of bounds", "Failed to allocate memory for requested buffer"])
def test_what_onnxruntime_says_in_several_lines_is_told_in_one(text: str) -> None:
    """A log line is one event: its readers split the log at line ends."""
    error = RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL :\n  {text} \n\n\n")
    told = str(explained(error, BOUNDED, "mlp version 1", 8))
    assert "\n" not in told
    assert told.endswith(f"[ONNXRuntimeError] : 1 : FAIL : {text}")


def test_the_free_memory_of_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "runtime", Mock())
    monkeypatch.setattr(cuda, "memory", Mock(return_value=(2_000, 85_899_345_920)))
    error = RuntimeError("Failed to allocate memory for requested buffer of size 4096")
    told = str(explained(error, BOUNDED, "mlp version 1", 8))
    assert "(4,096 bytes were wanted at once; 2,000 of 85,899,345,920 are free; max_device" in told


CANNOT_CAPTURE = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the "
    "user  as all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)
"""Said on an H100 by onnxruntime-gpu 1.31.1 of a graph with the node Mean."""


class OpenedSession:
    """What is asked of a session while it is opened. made: the CUDA provider's options, a session each."""

    made: ClassVar[list[dict[str, str]]] = []

    def __init__(self, *_: object, providers: list[tuple[str, dict[str, str]]], **__: object) -> None:
        self.made.append(providers[0][1])
        if providers[0][1]["enable_cuda_graph"] == "1":
            raise RuntimeError(CANNOT_CAPTURE)

    def get_providers(self) -> list[str]:
        return [PROVIDERS["cuda"]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Sessions that open on a GPU that is not there, unless they would capture graphs."""
    monkeypatch.setattr(OpenedSession, "made", [])
    monkeypatch.setattr(session, "_load_cuda", lambda: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDERS["cuda"]])
    monkeypatch.setattr(ort, "InferenceSession", OpenedSession)
    return OpenedSession.made


def test_a_model_with_nodes_on_the_cpu_runs_without_cuda_graphs(
    opened: list[dict[str, str]], add_classifier: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    asked = EngineOptions("cuda", 0, 1, (1, 8), pinned_memory=False)
    graph = add_classifier() / MODEL_FILE
    _, used = session.open_as_far_as_possible(graph, asked)
    assert [each["enable_cuda_graph"] for each in opened] == ["1", "0"]
    assert (used.cuda_graphs, used.overlaps) == (False, False)
    (line,) = caplog.messages
    assert line.startswith(f"{graph}: some of its nodes run on the CPU ([ONNXRuntimeError] : 1 : FAIL : This")
    assert line.endswith("CUDAExecutionProvider); it runs without CUDA graphs and overlap_copies")


def test_transposed_convolutions_get_an_algorithm_that_adds_in_one_order(
    opened: list[dict[str, str]], add_classifier: Callable[..., Path]
) -> None:
    """cuDNN's heuristic takes one for them whose bits differ from run to run."""
    graphs = [add_classifier() / MODEL_FILE, *sorted((ROOT / "models").glob("*/1/model.onnx"))]
    for graph in graphs:
        opened.clear()
        session.open_as_far_as_possible(graph, EngineOptions("cuda", 0, 1, (1,), False, pinned_memory=False))
        nodes = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
        expected = "DEFAULT" if "ConvTranspose" in nodes else "HEURISTIC"
        assert (graph, opened[0]["cudnn_conv_algo_search"]) == (graph, expected)
