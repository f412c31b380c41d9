"""Opens onnxruntime sessions: with which provider, and with which of its options.

Knows nothing of manifests, batches or buffers.
"""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime as ort

from service.errors import EngineError
from service.onnx import cuda
from service.onnx.streams import streams_of
from service.settings import Provider

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


CUDA_OPTIONS = {
    # Let the convolution algorithm be chosen by rule, not by a race: every start, and every replica on such a
    # GPU, computes the same bits. The race would also run once for each bucket at the start.
    "cudnn_conv_algo_search": "HEURISTIC",
    # TF32 keeps 10 of float32's 23 bits of mantissa. Answers shall be the CPU's, but for rounding.
    "use_tf32": "0",
}


@dataclass(frozen=True)
class EngineOptions:
    """How a session runs.

    buckets: the batch sizes that the graph ever sees, ascending; a batch is padded to the next one.
    cuda_graphs: with provider cuda, capture each bucket's kernels once and replay them as a whole.
    convolution_rows: where the graph has convolutions, leave out the buckets with more rows.
    pinned_memory: on a GPU, pin the host memory that batches are copied from, and to where copies overlap.
    overlap_copies: with provider cuda, let two batches be under way, so that one is copied while the other
        is computed. Takes pinned memory.
    """

    provider: Provider
    device_id: int
    intra_op_threads: int
    buckets: tuple[int, ...]
    cuda_graphs: bool = True
    convolution_rows: int | None = None
    pinned_memory: bool = True
    overlap_copies: bool = True

    @property
    def pins_memory(self) -> bool:
        """Whether host memory is pinned."""
        return self.provider != "cpu" and self.pinned_memory

    @property
    def overlaps(self) -> bool:
        """Whether one batch's copies overlap with another's compute."""
        # A copy to memory that is not pinned blocks until it has been made, which is until the batch has run.
        return self.provider == "cuda" and self.overlap_copies and self.pinned_memory


@cache
def _load_cuda() -> None:
    """Load CUDA's libraries, once for all models. Raises EngineError that names what is missing."""
    # onnxruntime warns at each session that its CUDA provider is not one of the new kind, a plugin.
    ort.set_default_logger_severity(3)
    # CUDA and cuDNN as Python packages, where they are installed as such; else as the system finds them.
    with redirect_stdout(io.StringIO()):  # it prints what it does not find, which the next line tells
        ort.preload_dlls(directory="")
    cuda.load_libraries(ort.cuda_version)


def open_session(graph: Path, options: EngineOptions) -> ort.InferenceSession:
    """A session on the provider. Raises EngineError where it cannot be had, or does not take the graph."""
    name = PROVIDERS[options.provider]
    available = ort.get_available_providers()
    if name not in available:
        raise EngineError(f"provider {options.provider} needs {name}, this onnxruntime has {available}")
    if options.provider != "cpu":
        try:
            _load_cuda()
        except EngineError as error:
            raise EngineError(f"provider {options.provider} cannot run: {error}") from error
    try:
        session = ort.InferenceSession(
            graph,
            _session_options(options),
            providers=_providers(options),
            enable_fallback=0,  # to the CPU, which onnxruntime would do with no more than a line on stdout
        )
    except Exception as error:  # onnxruntime raises its own types for a broken or unsupported graph
        raise EngineError(
            f"{graph} cannot be loaded, provider {options.provider} says: {error}{_advice(error)}"
        ) from error
    if session.get_providers()[0] != name:
        raise EngineError(
            f"provider {options.provider} was asked for, onnxruntime took {session.get_providers()}: "
            f"is there a device {options.device_id}, with the CUDA and cuDNN that onnxruntime is built for?"
        )
    return session


def _session_options(options: EngineOptions) -> ort.SessionOptions:
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
    if options.convolution_rows is not None:
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.provider != "cpu":
        session_options.use_deterministic_compute = True
    if options.provider == "cuda":
        # Quantized weights become constants in float32, so that no node is left for the CPU: the CUDA
        # provider has kernels for quantized activations, but not for the int32 of a quantized bias.
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
    return session_options


@cache
def _share_arena() -> None:
    """Give onnxruntime an arena that sessions may share; once in a process, as onnxruntime has it."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_requested = 1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, grow_as_requested, -1, -1))


def _providers(options: EngineOptions) -> list[tuple[str, dict[str, str]]]:
    """onnxruntime's providers and their options; it puts the CPU's behind them, for what is left."""
    if options.provider == "cpu":
        return [(PROVIDERS["cpu"], {})]
    device = {"device_id": str(options.device_id)}
    with_cuda = device | CUDA_OPTIONS
    if options.provider == "cuda":
        with_cuda["enable_cuda_graph"] = str(int(options.cuda_graphs))
        if options.overlaps:
            stream = streams_of(options.device_id, ort.cuda_version).compute
            with_cuda["user_compute_stream"] = str(stream.handle.value)
        return [(PROVIDERS["cuda"], with_cuda)]
    # No trt_cuda_graph_enable: this provider has one graph a session, whatever gpu_graph_id says, and would
    # replay the first bucket's for every other. CUDA's provider takes what TensorRT cannot.
    return [(PROVIDERS["tensorrt"], device), (PROVIDERS["cuda"], with_cuda)]


def _advice(error: Exception) -> str:
    if "graph capture" not in str(error):
        return ""
    return "; a CUDA graph needs every node on the GPU: set cuda_graphs to false to run without"
