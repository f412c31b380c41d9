"""A published graph on torch's CUDA device: it reads and writes torch's tensors on the device.

Knows nothing of teachers or runs. The statements about onnxruntime are those of onnxruntime-gpu 1.31.1.
"""

import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from service.errors import ProviderError
from training.datasets.splits import CLASSES

PROVIDER = "CUDAExecutionProvider"


class CudaSession:
    """A classifier's graph on onnxruntime's CUDA provider, on a stream of torch's.

    path: the graph, with the input `images` and the output `probabilities`.
    tf32: multiply float32 numbers as TF32, which keeps 10 of their 23 mantissa bits.
    Raises ProviderError if this onnxruntime cannot run the graph on the device.
    """

    def __init__(self, path: Path, device: torch.device, *, tf32: bool) -> None:
        available = onnxruntime.get_available_providers()
        if PROVIDER not in available:
            raise ProviderError(f"this onnxruntime has {', '.join(available)}, expected {PROVIDER}")
        # onnxruntime takes no stream with the handle 0, which is torch's usual one.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._session = _open(path, self._stream, tf32)
        self._options = onnxruntime.RunOptions()
        # A run returns once its kernels are launched; the streams wait for each other instead of the host.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def probabilities(self, pixels: Tensor) -> Tensor:
        """The graph's probabilities, (n, 10) float32, in order with the device's other work.

        pixels: (n, 28, 28) uint8, contiguous, on the session's device.
        """
        made = torch.empty((len(pixels), CLASSES), device=pixels.device)
        device_id, binding = self._stream.device.index, self._session.io_binding()
        for name, tensor, datatype, bind in (
            ("images", pixels, np.uint8, binding.bind_input),
            ("probabilities", made, np.float32, binding.bind_output),
        ):
            bind(name, "cuda", device_id, datatype, tuple(tensor.shape), tensor.data_ptr())
        usual = torch.cuda.current_stream(pixels.device)
        self._stream.wait_stream(usual)
        self._session.run_with_iobinding(binding, self._options)
        usual.wait_stream(self._stream)  # also keeps torch from reusing the tensors' memory before
        return made


def _open(path: Path, stream: torch.cuda.Stream, tf32: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    on_device = {
        "device_id": stream.device.index,
        "user_compute_stream": stream.cuda_stream,
        "use_tf32": int(tf32),
        # Not a benchmark, so that a run's arithmetic does not depend on what else the device does.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    with redirect_stdout(io.StringIO()):  # it prints the names of missing libraries
        onnxruntime.preload_dlls(directory="")
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=[(PROVIDER, on_device)], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises its own types
        raise ProviderError(f"{path} cannot be loaded by {PROVIDER}: {error}") from error
    if session.get_providers()[0] != PROVIDER:
        raise ProviderError(f"onnxruntime chose {session.get_providers()}, expected {PROVIDER} first")
    return session
