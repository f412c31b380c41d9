"""The service on a GPU whose memory is taken: at the start, at a reload, and while it serves."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime as ort
import pytest

from tests.support.device import MEBIBYTE, full_device
from tests.support.live import RAW_ANSWER, ROOT, Service, serving

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers() and shutil.which("nvidia-smi")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device, or an onnxruntime without CUDA"),
]
MODELS = ("mlp", "gan")
MESSAGE = re.compile(
    r"(mlp|gan)\b.*memory of GPU 0 is full: .* did not fit.*[\d,]+ of [\d,]+ are free.*serve fewer models"
)
STARTED_IN_SECONDS = 60


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in MODELS:
        shutil.copytree(ROOT / "models" / name, tmp_path / name)
    return tmp_path


def classify(service: Service, rows: int) -> np.ndarray:
    """Probabilities (rows, 10) of the same noise at every call."""
    images = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), np.uint8).tobytes()
    url = f"http://127.0.0.1:{service.port}/classify?model=mlp"
    with urlopen(Request(url, images, RAW_ANSWER)) as response:
        return np.frombuffer(response.read(), np.float32).reshape(rows, 10)


def mlp_version(service: Service) -> int:
    with urlopen(f"http://127.0.0.1:{service.port}/models") as response:
        content = json.load(response)
    return int(next(model["version"] for model in content["models"] if model["name"] == "mlp"))


@pytest.mark.parametrize("free", [50, 500, 700, 1000])
def test_a_start_without_enough_memory_says_what_did_not_fit(models: Path, free: int) -> None:
    """Wherever the memory ends, from CUDA's own to the last buffer: an exit with the reason, or it serves."""
    flags = ("--models-dir", str(models), "--provider", "cuda", "--max-batch-size", "4096", "--port", "0")
    command = [sys.executable, "-m", "service", *flags]
    with (
        full_device(free * MEBIBYTE),
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "ready at" in line:
                process.send_signal(signal.SIGTERM)
        code = process.wait(STARTED_IN_SECONDS)
    log = "".join(lines)
    print(log)
    assert "Traceback" not in log
    if code != 0:
        assert code == 1, log
        assert re.search(r"memory of GPU 0 is full|out of memory", log), log


@pytest.mark.parametrize("form", [(), ("--workers", "2")], ids=["one process", "split"])
def test_a_service_whose_device_fills_up_serves_on_and_keeps_the_old_version(
    models: Path, form: tuple[str, ...]
) -> None:
    flags = ("--models-dir", str(models), "--provider", "cuda", "--max-batch-size", "1024")
    with serving(*flags, *form) as service:
        sizes = (1, 7, 256, 1024)
        expected = {rows: classify(service, rows) for rows in sizes}
        with full_device(2 * MEBIBYTE):
            for rows in sizes:
                assert np.array_equal(classify(service, rows), expected[rows])
            new_version(models)
            service.process.send_signal(signal.SIGHUP)
            assert service.process.stderr is not None
            for line in service.process.stderr:
                print(line, end="")
                if "mlp" in line:
                    break
            assert MESSAGE.search(line), line
            assert mlp_version(service) == 1
            for rows in sizes:
                assert np.array_equal(classify(service, rows), expected[rows])
        service.process.send_signal(signal.SIGHUP)
        ends = time.monotonic() + STARTED_IN_SECONDS
        while mlp_version(service) == 1 and time.monotonic() < ends:
            time.sleep(0.1)
        assert mlp_version(service) == 2
        assert np.array_equal(classify(service, 7), expected[7])
        assert service.stop() == 0


def new_version(models: Path) -> None:
    """Publish mlp once more, as its next version."""
    shutil.copytree(models / "mlp" / "1", models / "mlp" / "next")
    manifest = models / "mlp" / "next" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    (models / "mlp" / "next").rename(models / "mlp" / "2")
