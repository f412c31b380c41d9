"""The providers' options, and what is said when one of them stops a graph."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from service.errors import OutOfMemory
from service.models.manifest import read_manifest
from service.onnx import cuda
from service.onnx.session import PROVIDERS, EngineOptions, explained, providers_of
from service.serving.tuning import engine_options
from service.settings import load_settings

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
    assert "the model's weights did not fit (4,194,304 bytes were wanted at once); serve fewer" in weights
    assert "max_" not in weights.partition(" Cause: ")[0]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"), True),
        (RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"), True),
        (RuntimeError("cudaHostRegister returned cudaErrorMemoryAllocation (2): out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError("Unable to allocate 12 GiB"), True),
        (RuntimeError("indices element out of data bounds, idx=12"), False),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), False),
    ],
)
def test_full_memory_is_told_from_other_failures(error: Exception, full: bool) -> None:
    assert isinstance(explained(error, BOUNDED, "mlp version 1", 1), OutOfMemory) == full


def test_the_free_memory_of_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "runtime", Mock())
    monkeypatch.setattr(cuda, "memory", Mock(return_value=(2_000, 85_899_345_920)))
    error = RuntimeError("Failed to allocate memory for requested buffer of size 4096")
    told = str(explained(error, BOUNDED, "mlp version 1", 8))
    assert "(4,096 bytes were wanted at once; 2,000 of 85,899,345,920 are free; max_device" in told
