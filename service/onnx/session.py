"""Opens an onnxruntime session on a provider, with that provider's options.

Knows nothing of manifests, batches or buffers.
"""

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnxruntime as ort

from service.errors import EngineError, OutOfMemory, ProviderError
from service.onnx import cuda
from service.onnx.full_memory import is_full, one_line, out_of_memory
from service.onnx.streams import streams_of
from service.onnx.unrounded import with_outputs
from service.settings import Provider

logger = logging.getLogger(__name__)

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

FATAL = 4
"""onnxruntime's lines go to stderr from C++: in no format of ours, and if nobody reads stderr they block the
device's thread. Its errors are exceptions too, which we log."""

TRANSPOSED = b"ConvTranspose"
"""The operator's name, as it stands in a graph's file."""

UNCAPTURABLE = "cannot use the graph capture feature"
"""In onnxruntime's message if a graph has nodes that only the CPU's provider runs."""


class CannotCapture(EngineError):
    """A CUDA graph cannot be captured, because nodes of the model run on the CPU."""


@dataclass(frozen=True)
class EngineOptions:
    """How a session runs.

    buckets: the only batch sizes that the graph sees, ascending; a batch is padded to the next one.
    cuda_graphs: with provider cuda, capture each bucket's kernels once and replay them as a whole.
    convolution_rows: if the graph has convolutions, leave out the buckets with more rows.
    pinned_memory: on a GPU, pin the host memory that batches are copied from and, if copies overlap, copied
        to.
    overlap_copies: with provider cuda, allow two batches in flight, so that one is copied while the other is
        computed. Requires pinned memory.
    max_device_memory_bytes: with provider cuda, what the session's arena may take of the device: weights and
        intermediate tensors. The buffers that batches are copied to, and CUDA's own memory, are not in it.
    tf32: with provider cuda, multiply float32 numbers as TF32, which keeps 10 of their 23 mantissa bits;
        otherwise results match the CPU's except for rounding.
    fixed_size: use only the buckets in which a row has the same bits as in batches of this size, which is one
        of them; None to use all.
    """

    provider: Provider
    device_id: int
    intra_op_threads: int
    buckets: tuple[int, ...]
    cuda_graphs: bool = True
    convolution_rows: int | None = None
    pinned_memory: bool = True
    overlap_copies: bool = True
    max_device_memory_bytes: int | None = None
    tf32: bool = False
    fixed_size: int | None = None

    @property
    def pins_memory(self) -> bool:
        """Whether host memory is pinned."""
        return self.provider != "cpu" and self.pinned_memory

    @property
    def overlaps(self) -> bool:
        """Whether one batch's copies overlap with another's compute."""
        # A copy to unpinned memory blocks until it is complete, and so until the batch has run.
        return self.provider == "cuda" and self.overlap_copies and self.pinned_memory


@cache
def _load_cuda() -> None:
    """Load CUDA's libraries, once for all models. Raises an EngineError that names the missing ones."""
    # CUDA and cuDNN from their Python packages if installed, otherwise from the system's search path.
    with redirect_stdout(io.StringIO()):  # it prints missing libraries; `load_libraries` reports them
        ort.preload_dlls(directory="")
    cuda.load_libraries(ort.cuda_version)


def open_session(
    graph: Path, options: EngineOptions, more_outputs: Sequence[str] = ()
) -> ort.InferenceSession:
    """Return a session on the provider.

    more_outputs: tensors of the graph that become outputs, too.
    Raises ProviderError if it is unavailable, EngineError if it rejects the graph.
    """
    name = PROVIDERS[options.provider]
    ort.set_default_logger_severity(FATAL)
    available = ort.get_available_providers()
    if name not in available:
        raise ProviderError(f"provider {options.provider} needs {name}, this onnxruntime has {available}")
    if options.provider != "cpu":
        try:
            _load_cuda()
        except EngineError as error:
            raise ProviderError(f"provider {options.provider} cannot run: {error}") from error
    session_options = _session_options(options)
    source: Path | bytes = graph
    if more_outputs:
        source = with_outputs(graph.read_bytes(), more_outputs)
        session_options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(graph.parent)
        )
    try:
        session = ort.InferenceSession(
            source,
            session_options,
            providers=providers_of(options, transposed=_has_transposed(graph, options)),
            enable_fallback=0,  # or onnxruntime would run on the CPU, with only a line on stdout
        )
    except Exception as error:  # onnxruntime raises its own types for a broken or unsupported graph
        context = f"{graph} cannot be loaded by provider {options.provider}"
        if UNCAPTURABLE in str(error):
            raise CannotCapture(f"{graph}: some of its nodes run on the CPU ({one_line(error)})") from error
        raise explained(error, options, context) from error
    if session.get_providers()[0] != name:
        raise EngineError(
            f"onnxruntime chose {session.get_providers()}, expected {name}: check that device "
            f"{options.device_id} exists, with the CUDA and cuDNN that onnxruntime is built for"
        )
    return session


def open_as_far_as_possible(
    graph: Path, options: EngineOptions
) -> tuple[ort.InferenceSession, EngineOptions]:
    """Open a session; without CUDA graphs and overlap, if some of its nodes run only on the CPU.

    Returns the session and the options that it has. Raises as `open_session`.
    """
    try:
        return open_session(graph, options), options
    except CannotCapture as error:
        logger.warning("%s; it runs without CUDA graphs and overlap_copies", error)
    options = replace(options, cuda_graphs=False, overlap_copies=False)
    return open_session(graph, options), options


def _has_transposed(graph: Path, options: EngineOptions) -> bool:
    return options.provider != "cpu" and TRANSPOSED in graph.read_bytes()


def _session_options(options: EngineOptions) -> ort.SessionOptions:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.intra_op_threads
    session_options.inter_op_num_threads = 1
    # Between two batches a spinning thread would take a core from the event loop.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One arena for all models, because one model runs at a time, and no memory plan per bucket: the shipped
    # models need 309 MB without, 183 MB with, at the same speed.
    _share_arena()
    session_options.add_session_config_entry("session.use_env_allocators", "1")
    session_options.enable_mem_pattern = False
    session_options.log_severity_level = FATAL
    if options.convolution_rows is not None:
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.provider != "cpu":
        session_options.use_deterministic_compute = True
    if options.provider == "cuda":
        # Fold quantized weights into float32 constants, so that no node runs on the CPU: the CUDA provider
        # has kernels for quantized activations, but none for the int32 of a quantized bias.
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
    return session_options


@cache
def _share_arena() -> None:
    """Register an arena that sessions may share; onnxruntime allows it once per process."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_requested = 1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, grow_as_requested, -1, -1))


def providers_of(options: EngineOptions, transposed: bool = False) -> list[tuple[str, dict[str, str]]]:
    """Return onnxruntime's providers and their options; it appends the CPU's for the remaining nodes.

    transposed: whether the graph has transposed convolutions.

    A heuristic, not a benchmark, chooses the convolutions' algorithms: every start, and every replica on the
    same kind of GPU, computes the same bits. The benchmark would also run for each bucket at startup. For
    transposed convolutions the heuristic takes algorithms that add in any order (cuDNN 9 on an H100: gan's
    first one had other bits in each run); those that DEFAULT takes, cuDNN's fallbacks, do not.
    """
    if options.provider == "cpu":
        return [(PROVIDERS["cpu"], {})]
    device = {"device_id": str(options.device_id)}
    with_cuda = device | {
        "use_tf32": str(int(options.tf32)),
        "cudnn_conv_algo_search": "DEFAULT" if transposed else "HEURISTIC",
    }
    if options.provider == "cuda":
        with_cuda["enable_cuda_graph"] = str(int(options.cuda_graphs))
        if options.max_device_memory_bytes is not None:
            with_cuda["gpu_mem_limit"] = str(options.max_device_memory_bytes)
        if options.overlaps:
            stream = streams_of(options.device_id, ort.cuda_version).compute
            with_cuda["user_compute_stream"] = str(stream.handle.value)
        return [(PROVIDERS["cuda"], with_cuda)]
    # No trt_cuda_graph_enable: this provider keeps one graph per session, whatever gpu_graph_id says, and
    # would replay the first bucket's graph for all buckets. CUDA's provider runs what TensorRT cannot.
    return [(PROVIDERS["tensorrt"], device), (PROVIDERS["cuda"], with_cuda)]


def explained(error: Exception, options: EngineOptions, context: str, rows: int | None = None) -> EngineError:
    """Return the error to raise for one of onnxruntime's: it names the setting to change if there is one.

    context: what failed, for the start of the message. rows: the size of the batch, if one ran.
    """
    if is_full(error):
        limit = options.max_device_memory_bytes
        full = out_of_memory(error, options.provider, options.device_id, rows, limit)
        return OutOfMemory(f"{context}: {full}")
    if "graph capture" in str(error):
        return EngineError(f"{context}: {one_line(error)}; set cuda_graphs to false to run without graphs")
    return EngineError(f"{context}: {one_line(error)}")
