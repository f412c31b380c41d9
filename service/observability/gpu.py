"""A GPU's memory and utilisation, read from NVML whenever the metrics are collected.

The package nvidia-ml-py comes with the extra `gpu`; without it, or without a driver, these metrics are
missing.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from service.observability.metrics import PREFIX

logger = logging.getLogger(__name__)


class GpuCollector:
    """The metrics of one GPU; see `prometheus_client.registry.Collector`.

    nvml: the module pynvml, initialised. handle: NVML's handle of the device. index: the label's value.
    """

    def __init__(self, nvml: Any, handle: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = handle
        self._index = str(index)

    def collect(self) -> Iterator[Metric]:
        """Read the device; omits figures that it does not report, such as the utilisation of a MIG slice."""
        nvml, handle = self._nvml, self._handle
        used = self._family("memory_used_bytes", "Memory in use on the GPU, by all processes.")
        total = self._family("memory_total_bytes", "Memory of the GPU.")
        busy = self._family("utilization_ratio", "Fraction of the last second or less in which a kernel ran.")
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            used.add_metric([self._index], memory.used)
            total.add_metric([self._index], memory.total)
            busy.add_metric([self._index], nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        except nvml.NVMLError as error:
            logger.debug("the GPU does not report everything: %s", error)
        return iter((used, total, busy))

    def _family(self, name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{PREFIX}_gpu_{name}", text, labels=["gpu"])


def open_gpu(device_id: int) -> GpuCollector | None:
    """Return the collector for the GPU with this CUDA index.

    Without NVML, logs the reason and returns None.
    """
    try:
        import pynvml
    except ImportError:
        logger.info("no GPU metrics: nvidia-ml-py is not installed")
        return None
    try:
        pynvml.nvmlInit()
        return GpuCollector(pynvml, find_device(pynvml, device_id, visible_devices()), device_id)
    except pynvml.NVMLError as error:
        logger.info("no GPU metrics: %s", error)
        return None


def visible_devices() -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES, which CUDA numbers from 0; empty if unset."""
    return [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]


def find_device(nvml: Any, device_id: int, visible: list[str]) -> Any:
    """Return NVML's handle of a device; NVML numbers all GPUs of the host. Raises NVMLError.

    CUDA orders GPUs of several kinds by speed unless CUDA_DEVICE_ORDER is PCI_BUS_ID; NVML orders them by
    bus.
    """
    name = visible[device_id] if device_id < len(visible) else str(device_id)
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)
