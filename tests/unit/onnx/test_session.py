"""The providers' options, and what is said when one of them stops a graph."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from service.models.manifest import read_manifest
from service.onnx.session import PROVIDERS, EngineOptions, explain, providers_of
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


def test_a_full_arena_is_explained_by_the_setting_that_bounds_it() -> None:
    run = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=True)
    error = RuntimeError(run.stdout.strip())
    assert "Available memory of 1048576 is smaller than requested bytes of 4194304" in str(error)
    advice = "; max_device_memory_bytes is 1048576: raise it, or lower max_batch_size"
    assert explain(error, BOUNDED) == f"{error}{advice}"
    assert explain(error, EngineOptions("cuda", 0, 1, (1,))) == str(error)
    assert explain(RuntimeError("out of data bounds"), BOUNDED) == "out of data bounds"
