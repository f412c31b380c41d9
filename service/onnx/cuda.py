"""CUDA's own libraries, asked directly where onnxruntime does not do so: are they there, and pinned memory.

Knows nothing of sessions, models or batches. Has not run on a GPU yet.
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
    """Load what onnxruntime's CUDA provider needs of a version of CUDA, such as 13.0, and of the driver.

    It is linked to all but cuDNN, which it loads later (readelf, onnxruntime-gpu 1.31.1).
    Raises EngineError that names what is missing. onnxruntime itself would write it in lines of its own,
    and then take the CPU.
    """
    major = version.partition(".")[0]
    of_cuda = [f"lib{name}.so.{major}" for name in ("cublasLt", "cublas", "cudart")]
    problems = {}
    for name in (*of_cuda, "libcurand.so.10", "libcudnn.so.9", "libcuda.so.1"):
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
    """CUDA's runtime of a version, such as 13.0: the very library that onnxruntime's provider has loaded."""
    name = f"libcudart.so.{version.partition('.')[0]}"
    try:
        return ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError as error:
        raise EngineError(f"{name} is not loaded, expected onnxruntime to have done so: {error}") from error


def whole_pages(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Zeros in pages of memory that nothing else lies in, as pages are what is pinned."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def pin(array: Array, device_id: int, library: ctypes.CDLL) -> Callable[[], None]:
    """Pin an array's memory, so that a GPU reads it without a copy by the driver in between.

    array: of `whole_pages`. library: see `runtime`.
    Returns what unpins it, and keeps the array until then.
    Raises EngineError with CUDA's name for what is wrong.

    CUDA's copies know by the address that memory is pinned ("cudaHostRegister" in its Runtime API), and
    onnxruntime passes them the array's own: `OrtValue.update_inplace` comes down to cudaMemcpy_HostToDevice
    in onnxruntime/core/providers/cuda/cuda_provider_factory.cc. What `OrtValue.numpy` copies to cannot be
    pinned: it is a new array each time, see PrimitiveTensorToNumpyFromDevice in
    onnxruntime/python/onnxruntime_pybind_mlvalue.cc.
    """
    address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
    try:
        # Else the runtime would set itself up on the thread's device, by default the first.
        call(library, "cudaSetDevice", device_id)
        call(library, "cudaHostRegister", address, size, 0)
    except EngineError as error:
        raise EngineError(
            f"{array.nbytes} bytes of host memory cannot be pinned: {error}; "
            "set pinned_memory to false to run without"
        ) from error

    def unpin() -> None:
        try:
            call(library, "cudaSetDevice", device_id)
            call(library, "cudaHostUnregister", ctypes.c_void_p(array.ctypes.data))
        except EngineError as error:  # nobody waits for this, and the batches were answered
            logger.warning("memory stays pinned: %s", error)

    return unpin


def call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of CUDA's runtime. Raises EngineError with CUDA's name for what is wrong."""
    code = getattr(library, function)(*arguments)
    if code != 0:
        library.cudaGetLastError()  # else onnxruntime would find this error after its next kernel
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
        name, text = library.cudaGetErrorName(code), library.cudaGetErrorString(code)
        raise EngineError(f"{function} gave {name.decode()} ({code}): {text.decode()}")
