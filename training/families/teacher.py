"""A published classifier as a teacher: what it makes of a batch of training images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from service.errors import ProviderError
from service.models.manifest import MODEL_FILE
from training.datasets.splits import Splits
from training.families.cuda_session import CudaSession
from training.sources import check_source
from training.terminal import notice
from training.versions import read_verified

LEAST_PROBABILITY = 1e-12

CPU = torch.device("cpu")


class Teacher:
    """A classifier's graph, run by onnxruntime: on a run's GPU, or on as many threads as torch uses.

    device: the run's. If it is a GPU and this onnxruntime cannot use it, a line on stderr says so, and the
        teacher runs on the CPU.
    tf32: on a GPU, multiply float32 numbers as TF32: for runs that compute in fewer bits themselves.
    Raises SourceError or EvaluationError unless the folder holds a classifier of the same data.
    """

    def __init__(
        self, folder: Path, splits: Splits, device: torch.device = CPU, *, tf32: bool = False
    ) -> None:
        check_source(read_verified(folder), splits)
        self._probabilities = _reader(folder / MODEL_FILE, device, tf32)

    def targets(self, images: Tensor, temperature: float) -> Tensor:
        """Return softmax(log p / temperature) of the teacher's probabilities p: (n, 10), float32.

        images: (n, 1, 28, 28) float in 0..1. The teacher gets them as bytes, as it is served.
        """
        pixels = (images.squeeze(1) * 255).round().clamp(0, 255).to(torch.uint8).contiguous()
        logs = self._probabilities(pixels).clamp(min=LEAST_PROBABILITY).log()
        return (logs / temperature).softmax(dim=1)


def _reader(path: Path, device: torch.device, tf32: bool) -> Callable[[Tensor], Tensor]:
    """The function from bytes, (n, 28, 28), to probabilities, (n, 10), on the device of the bytes."""
    if device.type == "cuda":
        try:
            return CudaSession(path, device, tf32=tf32).probabilities
        except ProviderError as error:
            notice(f"the teacher runs on the CPU, because {error}")
    return _on_cpu(path)


def _on_cpu(path: Path) -> Callable[[Tensor], Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def probabilities(pixels: Tensor) -> Tensor:
        (made,) = session.run(["probabilities"], {"images": np.ascontiguousarray(pixels.cpu().numpy())})
        return torch.from_numpy(made).to(pixels.device)

    return probabilities
