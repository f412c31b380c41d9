"""Calls CUDA's libraries directly for two tasks that onnxruntime lacks: check that they load, and pin memory.

Every call into CUDA's runtime goes through `call`; `service.onnx.streams` adds streams and events. Knows
nothing of sessions, models or batches.
"""

import ctypes
import logging
import mmap
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from service.errors import EngineError
from service.models.tensors import Array

logger = logging.getLogger(__name__)


def load_libraries(version: str) -> None:
    """Load the libraries that onnxruntime's CUDA provider needs, and the driver's.

    version: CUDA's, such as 13.0. The provider is linked to all of them except cuDNN, which it loads later
    (readelf, onnxruntime-gpu 1.31.1).
    Raises an EngineError that names the missing libraries. onnxruntime itself would only print them and then
    run on the CPU.
    """
    major = version.partition(".")[0]
    cuda_libraries = [f"lib{name}.so.{major}" for name in ("cublasLt", "cublas", "cudart")]
    problems = {}
    for name in (*cuda_libraries, "libcurand.so.10", "libcudnn.so.9", "libcuda.so.1"):
        try:
            ctypes.CDLL(name)
        except OSError as error:
            problems[name] = str(error)
    if problems:
        first = next(iter(problems.values()))
        raise EngineError(
            f"{', '.join(problems)} cannot be loaded ({first}), expected CUDA {version}, cuDNN 9, "
            "and NVIDIA's driver, which brings libcuda.so.1"
        )


def runtime(version: str) -> ctypes.CDLL:
    """Return CUDA's runtime, the same library that onnxruntime's provider has loaded.

    version: CUDA's, such as 13.0. Raises EngineError if it is not loaded.
    """
    name = f"libcudart.so.{version.partition('.')[0]}"
    try:
        return ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError as error:
        raise EngineError(f"{name} is not loaded, expected onnxruntime to have loaded it: {error}") from error


def whole_pages(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a zeroed array that shares its pages with nothing else, because whole pages are pinned."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def pin(array: Array, device_id: int, library: ctypes.CDLL) -> Callable[[], None]:
    """Pin an array's memory, so that a GPU reads it without an intermediate copy by the driver.

    array: from `whole_pages`. library: see `runtime`.
    Returns a function that unpins it; it keeps the array alive until called.
    Raises EngineError with CUDA's name of the error.

    CUDA's copies recognise pinned memory by its address ("cudaHostRegister" in its Runtime API), and
    onnxruntime passes the array's own address: `OrtValue.update_inplace` calls cudaMemcpy_HostToDevice in
    onnxruntime/core/providers/cuda/cuda_provider_factory.cc. The memory that `OrtValue.numpy` copies to
    cannot be pinned: it is a new array each time, see PrimitiveTensorToNumpyFromDevice in
    onnxruntime/python/onnxruntime_pybind_mlvalue.cc.
    """
    address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
    try:
        # Otherwise the runtime would initialise the thread's current device, by default the first.
        call(library, "cudaSetDevice", device_id)
        call(library, "cudaHostRegister", address, size, 0)
    except EngineError as error:
        raise EngineError(
            f"{array.nbytes} bytes of host memory cannot be pinned: {error}; "
            "set pinned_memory to false to run without pinning"
        ) from error

    def unpin() -> None:
        try:
            call(library, "cudaSetDevice", device_id)
            call(library, "cudaHostUnregister", ctypes.c_void_p(array.ctypes.data))
        except EngineError as error:  # no caller waits for this, and the batches were answered
            logger.warning("memory stays pinned: %s", error)

    return unpin


def memory(device_id: int, library: ctypes.CDLL) -> tuple[int, int]:
    """Return a device's free and total memory in bytes. library: see `runtime`. Raises EngineError."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call(library, "cudaSetDevice", device_id)
    call(library, "cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of CUDA's runtime. Raises EngineError with CUDA's name of the error."""
    code = getattr(library, function)(*arguments)
    if code != 0:
        library.cudaGetLastError()  # clears it: onnxruntime would report it after its next kernel
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
        name, text = library.cudaGetErrorName(code), library.cudaGetErrorString(code)
        raise EngineError(f"{function} returned {name.decode()} ({code}): {text.decode()}")
