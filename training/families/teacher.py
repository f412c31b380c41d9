"""A published classifier as a teacher: what it makes of a batch of training images."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from service.models.manifest import MODEL_FILE
from training.datasets.splits import Splits
from training.sources import check_source
from training.versions import read_verified

LEAST_PROBABILITY = 1e-12


class Teacher:
    """A classifier's graph, run by onnxruntime on as many threads as torch uses.

    Raises SourceError or EvaluationError unless the folder holds a classifier of the same data.
    """

    def __init__(self, folder: Path, splits: Splits) -> None:
        check_source(read_verified(folder), splits)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / MODEL_FILE, options, providers=["CPUExecutionProvider"]
        )

    def targets(self, images: Tensor, temperature: float) -> Tensor:
        """Return softmax(log p / temperature) of the teacher's probabilities p: (n, 10), float32.

        images: (n, 1, 28, 28) float in 0..1. The teacher gets them as bytes, as it is served.
        """
        pixels = (images.squeeze(1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        (probabilities,) = self._session.run(["probabilities"], {"images": np.ascontiguousarray(pixels)})
        logs = torch.from_numpy(probabilities).clamp(min=LEAST_PROBABILITY).log().to(images.device)
        return (logs / temperature).softmax(dim=1)
