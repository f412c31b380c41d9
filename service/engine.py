"""One model's onnxruntime session on one device: its providers, its buckets, its buffers.

Knows nothing of requests, queues or time; `run` blocks and is called from one thread at a time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import EngineError, ManifestError
from service.manifest import Manifest, TensorSpec
from service.settings import Provider
from service.tensors import dtype_of

Array = NDArray[Any]

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class EngineOptions:
    """How a session runs.

    buckets: the batch sizes that the graph ever sees, ascending; a batch is padded to the next one.
    """

    provider: Provider
    device_id: int
    intra_op_threads: int
    buckets: tuple[int, ...]


@dataclass(frozen=True)
class _Bucket:
    """The buffers of one batch size, bound to the session at fixed addresses."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    device_inputs: tuple[ort.OrtValue, ...]
    device_outputs: tuple[ort.OrtValue, ...]
    binding: ort.IOBinding
    run_options: ort.RunOptions


def bucket_sizes(max_batch_size: int, per_octave: int = 1) -> tuple[int, ...]:
    """Batch sizes up to max_batch_size, that many from each power of two to the next.

    >>> bucket_sizes(6)
    (1, 2, 4, 6)
    >>> bucket_sizes(20, per_octave=4)
    (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20)
    """
    powers = [1 << power for power in range(max_batch_size.bit_length())]
    sizes = {power + power * step // per_octave for power in powers for step in range(per_octave)}
    return (*sorted(size for size in sizes if size < max_batch_size), max_batch_size)


class Engine:
    """A loaded model. Raises, when made, EngineError without its provider and ManifestError where the
    graph's tensors are not those of the manifest.
    """

    def __init__(self, graph: Path, manifest: Manifest, options: EngineOptions) -> None:
        self.buckets = options.buckets
        self._seconds = dict.fromkeys(options.buckets, math.inf)
        self._warm_up_runs = 1 if options.provider == "cpu" else 2
        self._session = _open_session(graph, options)
        _check_tensors(manifest.inputs, self._session.get_inputs(), "input")
        _check_tensors(manifest.outputs, self._session.get_outputs(), "output")
        most = options.buckets[-1]
        inputs = tuple(_buffer(spec, most) for spec in manifest.inputs)
        outputs = tuple(_buffer(spec, most) for spec in manifest.outputs)
        self._by_size = {
            size: self._bind(index, size, manifest, options, inputs, outputs)
            for index, size in enumerate(options.buckets)
        }

    def warm_up(self) -> None:
        """Run every bucket, so that no request meets a shape that the session has not seen.

        The largest first, which makes the memory arena as large as it will ever be. On a GPU twice
        each, because a CUDA graph is captured by the first run and replayed by the next.
        """
        for size in reversed(self.buckets):
            for _ in range(self._warm_up_runs):
                started = time.perf_counter()
                self._execute(self._by_size[size])
                self._seconds[size] = time.perf_counter() - started

    def seconds_for(self, rows: int) -> float:
        """What a batch of `rows` rows took in the warm-up."""
        return self._seconds[self.bucket_for(rows)]

    def bucket_for(self, rows: int) -> int:
        """The batch size that `rows` rows are padded to, 1 <= rows <= buckets[-1]."""
        return next(size for size in self.buckets if size >= rows)

    def run(self, parts: Sequence[tuple[Array, ...]], rows: int) -> tuple[Array, ...]:
        """Run the parts' rows as one batch; blocks the calling thread.

        parts: one tuple per request, of one array per input in the manifest's order, each (n, ...)
            with the dtype and shape of the manifest; the n add up to `rows`.
        Returns one array per output in the manifest's order, (rows, ...), owned by the caller.
        Raises EngineError if the device or the graph fails.
        """
        bucket = self._by_size[self.bucket_for(rows)]
        offset = 0
        for arrays in parts:
            end = offset + len(arrays[0])
            for buffer, array in zip(bucket.inputs, arrays, strict=True):
                buffer[offset:end] = array
            offset = end
        # Rows past `offset` keep what an earlier batch left there: padding, whose outputs nobody reads.
        self._execute(bucket)
        return tuple(buffer[:rows].copy() for buffer in bucket.outputs)

    def _execute(self, bucket: _Bucket) -> None:
        try:
            for value, array in zip(bucket.device_inputs, bucket.inputs, strict=False):
                value.update_inplace(array)
            self._session.run_with_iobinding(bucket.binding, bucket.run_options)
            for value, array in zip(bucket.device_outputs, bucket.outputs, strict=False):
                np.copyto(array, value.numpy())
        except Exception as error:  # onnxruntime raises its own types, RuntimeError and more
            raise EngineError(str(error)) from error

    def _bind(
        self,
        index: int,
        size: int,
        manifest: Manifest,
        options: EngineOptions,
        inputs: tuple[Array, ...],
        outputs: tuple[Array, ...],
    ) -> _Bucket:
        """Bind the first `size` rows of the shared buffers; on a GPU, device memory of that size."""
        binding = self._session.io_binding()
        run_options = ort.RunOptions()
        views_in = tuple(buffer[:size] for buffer in inputs)
        views_out = tuple(buffer[:size] for buffer in outputs)
        device_in: tuple[ort.OrtValue, ...] = ()
        device_out: tuple[ort.OrtValue, ...] = ()
        if options.provider == "cpu":
            for spec, view in zip(manifest.inputs, views_in, strict=True):
                binding.bind_input(spec.name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
            for spec, view in zip(manifest.outputs, views_out, strict=True):
                binding.bind_output(spec.name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
        else:
            # One captured graph per bucket: replay needs the addresses that it was captured with.
            run_options.add_run_config_entry("gpu_graph_id", str(index + 1))
            device_in = tuple(_on_gpu(view, options.device_id) for view in views_in)
            device_out = tuple(_on_gpu(view, options.device_id) for view in views_out)
            for spec, value in zip(manifest.inputs, device_in, strict=True):
                binding.bind_ortvalue_input(spec.name, value)
            for spec, value in zip(manifest.outputs, device_out, strict=True):
                binding.bind_ortvalue_output(spec.name, value)
        return _Bucket(views_in, views_out, device_in, device_out, binding, run_options)


def _open_session(graph: Path, options: EngineOptions) -> ort.InferenceSession:
    name = PROVIDERS[options.provider]
    available = ort.get_available_providers()
    if name not in available:
        raise EngineError(f"provider {options.provider} needs {name}, this onnxruntime has {available}")
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.intra_op_threads
    session_options.inter_op_num_threads = 1
    # A spinning thread would take a core from the event loop between two batches.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One arena for all models, as one runs at a time, and no plan of memory for each bucket: with the
    # shipped models 183 MB instead of 309, at the same speed.
    _share_arena()
    session_options.add_session_config_entry("session.use_env_allocators", "1")
    session_options.enable_mem_pattern = False
    session_options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, session_options, providers=[(name, _provider_options(options))])
    except Exception as error:  # onnxruntime raises its own types for a broken or unsupported graph
        raise EngineError(f"{graph} cannot be loaded: {error}") from error
    session.disable_fallback()
    if session.get_providers()[0] != name:
        raise EngineError(
            f"provider {options.provider} was asked for, onnxruntime took {session.get_providers()}: "
            f"is there a device {options.device_id}?"
        )
    return session


@cache
def _share_arena() -> None:
    """Give onnxruntime an arena that sessions may share; once in a process, as onnxruntime has it."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_requested = 1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, grow_as_requested, -1, -1))


def _provider_options(options: EngineOptions) -> dict[str, str]:
    if options.provider == "cpu":
        return {}
    if options.provider == "cuda":
        return {"device_id": str(options.device_id), "enable_cuda_graph": "1"}
    return {"device_id": str(options.device_id), "trt_cuda_graph_enable": "1"}


def _check_tensors(specs: Sequence[TensorSpec], nodes: Sequence[ort.NodeArg], kind: str) -> None:
    seen = {node.name: (node.type, tuple(node.shape)) for node in nodes}
    if set(seen) != {spec.name for spec in specs}:
        raise ManifestError(
            f"the graph has the {kind}s {sorted(seen)}, the manifest names {[spec.name for spec in specs]}"
        )
    for spec in specs:
        datatype, shape = seen[spec.name]
        if datatype != _onnxruntime_type(spec):
            raise ManifestError(
                f"{kind} {spec.name} is {datatype} in the graph, the manifest says {_onnxruntime_type(spec)}"
            )
        if isinstance(shape[0], int) or shape[1:] != spec.shape[1:]:
            raise ManifestError(
                f"{kind} {spec.name} has shape {list(shape)} in the graph, expected a free batch axis "
                f"and {list(spec.shape)}"
            )


def _onnxruntime_type(spec: TensorSpec) -> str:
    name = {"float32": "float", "float64": "double"}.get(dtype_of(spec).name, dtype_of(spec).name)
    return f"tensor({name})"


def _buffer(spec: TensorSpec, rows: int) -> Array:
    return np.zeros((rows, *spec.shape[1:]), dtype_of(spec))


def _on_gpu(array: Array, device_id: int) -> ort.OrtValue:
    return cast("ort.OrtValue", ort.OrtValue.ortvalue_from_numpy(array, "cuda", device_id))
