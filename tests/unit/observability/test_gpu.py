"""GPU metrics. NVML's answers are made up but for the test marked `gpu`: it needs a driver."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.observability.gpu import GpuCollector, find_device, open_gpu


class Nvml:
    """As much of pynvml as is asked."""

    class NVMLError(Exception):
        pass

    def __init__(self, mig: bool = False) -> None:
        self.mig = mig

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"index {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return f"uuid {uuid}"

    def nvmlDeviceGetMemoryInfo(self, _: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=3 << 30, total=80 << 30)

    def nvmlDeviceGetUtilizationRates(self, _: Any) -> SimpleNamespace:  # noqa: N802
        if self.mig:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=42)


def figures(nvml: Nvml) -> dict[str, float | None]:
    registry = CollectorRegistry()
    registry.register(GpuCollector(nvml, "handle", 1))
    names = ("memory_used_bytes", "memory_total_bytes", "utilization_ratio")
    return {name: registry.get_sample_value(f"inkserve_gpu_{name}", {"gpu": "1"}) for name in names}


def test_memory_is_in_bytes_and_utilisation_is_a_ratio() -> None:
    assert figures(Nvml()) == {
        "memory_used_bytes": 3 << 30,
        "memory_total_bytes": 80 << 30,
        "utilization_ratio": 0.42,
    }


def test_what_a_mig_slice_does_not_tell_is_left_out() -> None:
    told = figures(Nvml(mig=True))
    assert told["memory_used_bytes"] == 3 << 30
    assert told["utilization_ratio"] is None


@pytest.mark.parametrize(
    ("visible", "device_id", "handle"),
    [
        ([], 1, "index 1"),
        (["2", "3"], 1, "index 3"),
        (["GPU-aa", "MIG-bb"], 1, "uuid MIG-bb"),
    ],
)
def test_a_device_is_found_under_cudas_number(visible: list[str], device_id: int, handle: str) -> None:
    assert find_device(Nvml(), device_id, visible) == handle


def test_without_nvml_or_a_driver_there_are_no_figures() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    assert open_gpu(0) is None


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="there is no GPU")
def test_a_real_gpu_tells_its_memory() -> None:
    gpu = open_gpu(0)
    assert gpu is not None
    registry = CollectorRegistry()
    registry.register(gpu)
    used = registry.get_sample_value("inkserve_gpu_memory_used_bytes", {"gpu": "0"})
    total = registry.get_sample_value("inkserve_gpu_memory_total_bytes", {"gpu": "0"})
    assert used is not None
    assert total is not None
    assert 0 < used < total
