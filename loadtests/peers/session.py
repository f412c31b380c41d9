"""The onnxruntime session that every peer runs, so that the servers differ and the engine does not."""

import os

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

SIDE = 28
PIXELS = SIDE * SIDE
MAX_BATCH_SIZE = 256


class Classifier:
    """The model at the path in the environment variable MODEL, on THREADS threads.

    ORT_PROVIDER names onnxruntime's execution provider; the CPU's if it is unset.
    Raises RuntimeError if that provider is unavailable: onnxruntime itself would run on the CPU.
    """

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = os.environ.get("ORT_PROVIDER", "CPUExecutionProvider")
        if provider != "CPUExecutionProvider":
            ort.preload_dlls(directory="")
        # CUDA's provider multiplies as TF32 unless told otherwise: other answers than inkserve's, sooner.
        chosen = (provider, {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {})
        self._session = ort.InferenceSession(os.environ["MODEL"], options, providers=[chosen])
        used = self._session.get_providers()
        if provider not in used:
            raise RuntimeError(f"onnxruntime runs on {', '.join(used)}, expected {provider}")
        self(np.zeros((MAX_BATCH_SIZE, SIDE, SIDE), np.uint8))  # warm: the first run allocates

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify uint8 images, (n, 28, 28); blocks. Returns float32 probabilities, (n, 10)."""
        probabilities: NDArray[np.float32] = self._session.run(["probabilities"], {"images": images})[0]
        return probabilities


def rows_of(body: bytes) -> NDArray[np.uint8]:
    """A raw body as images, (n, 28, 28)."""
    return np.frombuffer(body, np.uint8).reshape(-1, SIDE, SIDE)
