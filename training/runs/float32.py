"""What torch computes float32 products in: float32. Knows nothing of runs."""

import logging

import torch

ADVICE = "set_float32_matmul_precision"
"""What Fabric's line contains that advises TF32, at every start on a GPU that has it."""


def keep_float32() -> None:
    """Compute float32 products in float32, in matrix products and in convolutions, on every device.

    The hyperparameter `precision` alone chooses a run's arithmetic, and is kept in its record: 32-true must
    not depend on the GPU's generation. torch's own defaults differ: float32 in matrix products, TF32, which
    keeps 10 of the 23 mantissa bits, in cuDNN's convolutions. For speed there is bf16-mixed. On a CPU
    neither changes a bit.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return ADVICE not in record.getMessage()
