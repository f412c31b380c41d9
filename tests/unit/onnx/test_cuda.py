"""CUDA's real runtime. It reports that the driver is missing; tests marked `gpu` need one.

One test fakes the driver.
"""

import ctypes
import importlib.metadata
import inspect
import logging
import mmap
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from service.errors import EngineError
from service.onnx import cuda, streams
from service.onnx.streams import Event, Stream, Streams, streams_of

HAS_GPU = Path("/dev/nvidiactl").exists()
no_driver = pytest.mark.skipif(HAS_GPU, reason="this machine has a driver")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    try:
        files = importlib.metadata.files("nvidia-cuda-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-cuda-runtime has no wheel for this platform")
    (path,) = (file.locate() for file in files if file.name == "libcudart.so.13")
    return ctypes.CDLL(str(path))


@no_driver
def test_missing_libraries_raise_an_error_that_names_them() -> None:
    missing = (
        r"^libcublasLt\.so\.99, .*, libcuda\.so\.1 cannot be loaded \(.*No such file.*\), expected CUDA 99\.1"
    )
    with pytest.raises(EngineError, match=missing):
        cuda.load_libraries("99.1")


def test_runtime_returns_the_loaded_library(library: ctypes.CDLL) -> None:
    assert cuda.runtime("13.0")._handle == library._handle


def test_a_runtime_that_is_not_loaded_raises_an_error() -> None:
    with pytest.raises(EngineError, match=r"libcudart\.so\.99 is not loaded"):
        cuda.runtime("99.1")


def test_arrays_share_no_pages() -> None:
    arrays = [cuda.whole_pages((3, 5), np.float32) for _ in range(2)]
    assert all(array.ctypes.data % mmap.PAGESIZE == 0 for array in arrays)
    assert abs(arrays[0].ctypes.data - arrays[1].ctypes.data) >= mmap.PAGESIZE
    arrays[0][2, 4] = 1
    assert (arrays[0].sum(), arrays[1].sum()) == (1, 0)


@no_driver
def test_pinning_without_a_driver_raises_an_error_with_the_cause(library: ctypes.CDLL) -> None:
    why = r"cudaSetDevice returned cudaErrorInsufficientDriver \(35\): .*; set pinned_memory to false"
    with pytest.raises(EngineError, match=why):
        cuda.pin(cuda.whole_pages((2, 784), np.uint8), 0, library)


@no_driver
def test_streams_without_a_driver_raise_an_error_with_the_cause(library: ctypes.CDLL) -> None:
    with pytest.raises(EngineError, match=r"cudaSetDevice returned cudaErrorInsufficientDriver \(35\)"):
        Streams(library, 0)
    with pytest.raises(EngineError, match=r"cudaStreamCreateWithFlags returned cudaErrorInsufficientDriver"):
        Stream(library)
    with pytest.raises(EngineError, match=r"cudaEventCreateWithFlags returned cudaErrorInsufficientDriver"):
        Event(library)


def test_the_runtime_has_every_function_that_streams_call(library: ctypes.CDLL) -> None:
    used = set(re.findall(r"cuda[A-Z]\w+", inspect.getsource(streams)))
    functions = {
        name for name in used if not name.startswith(("cudaStreamNon", "cudaEventDis", "cudaMemcpyKind"))
    }
    assert len(functions) >= 8
    for name in functions:
        assert getattr(library, name)


def test_memory_is_pinned_and_unpinned_on_its_device(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[str, object]] = []

    def unregister(address: ctypes.c_void_p) -> int:
        calls.append(("unregister", address.value))
        return 713

    def register(address: ctypes.c_void_p, size: ctypes.c_size_t, _flags: int) -> int:
        calls.append(("register", (address.value, size.value)))
        return 0

    def set_device(device: int) -> int:
        calls.append(("device", device))
        return 0

    def name(_code: int) -> bytes:
        return b"cudaErrorHostMemoryNotRegistered"

    driver = SimpleNamespace(
        cudaSetDevice=set_device,
        cudaHostRegister=register,
        cudaHostUnregister=unregister,
        cudaGetErrorName=name,
        cudaGetErrorString=name,
        cudaGetLastError=lambda: calls.append(("cleared", None)),
    )
    array = cuda.whole_pages((10, 784), np.uint8)
    unpin = cuda.pin(array, 1, driver)  # type: ignore[arg-type]
    assert calls == [("device", 1), ("register", (array.ctypes.data, 7840))]
    with caplog.at_level(logging.WARNING):
        unpin()
    assert calls[2:] == [("device", 1), ("unregister", array.ctypes.data), ("cleared", None)]
    assert (
        "memory stays pinned: cudaHostUnregister returned cudaErrorHostMemoryNotRegistered (713)"
        in caplog.text
    )


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU or not ort.cuda_version, reason="no GPU, or an onnxruntime without CUDA")
def test_memory_is_pinned_until_it_is_unpinned() -> None:
    ort.preload_dlls(directory="")
    library = cuda.runtime(ort.cuda_version)
    array = cuda.whole_pages((10, 784), np.uint8)
    for _ in range(2):
        unpin = cuda.pin(array, 0, library)
        with pytest.raises(EngineError, match="cudaErrorHostMemoryAlreadyRegistered"):
            cuda.pin(array, 0, library)
        unpin()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU or not ort.cuda_version, reason="no GPU, or an onnxruntime without CUDA")
def test_streams_copy_there_and_back_in_the_order_of_their_events() -> None:
    ort.preload_dlls(directory="")
    cuda.load_libraries(ort.cuda_version)
    on_device = streams_of(0, ort.cuda_version)
    sent, got = np.arange(1 << 20, dtype=np.float32), np.zeros(1 << 20, np.float32)
    value = ort.OrtValue.ortvalue_from_numpy(got, "cuda", 0)
    copied, copied_back = Event(on_device.library), Event(on_device.library)
    on_device.copy_in.copy_to_device(sent, value.data_ptr())
    on_device.copy_in.record(copied)
    on_device.copy_out.wait_for(copied)
    on_device.copy_out.copy_from_device(value.data_ptr(), got)
    on_device.copy_out.record(copied_back)
    copied_back.wait()
    assert np.array_equal(sent, got)
