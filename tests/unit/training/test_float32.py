"""The precision of float32 products, in the process where a run starts."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning_fabric.accelerators import cuda
from lightning_utilities.core.rank_zero import rank_zero_info

from training.runs.float32 import keep_float32
from training.runs.run import Run


@pytest.fixture(autouse=True)
def other_precision() -> Iterator[None]:
    """What an earlier part of the process may have chosen."""
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    keep_float32()


def test_a_run_computes_float32_products_in_float32(tmp_path: Path) -> None:
    Run(tmp_path, {}, epochs=1, seed=0, device="cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32


def test_fabric_does_not_advise_tf32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fabric's own check, on a GPU that has TF32: it takes the precision for one that nobody chose."""
    keep_float32()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda _: True)
    logger = logging.getLogger("lightning_fabric.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.addHandler(caplog.handler)  # Fabric's loggers do not propagate
        try:
            cuda._check_cuda_matmul_precision(torch.device("cuda"))
            rank_zero_info("another line")
        finally:
            logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"another line"}
