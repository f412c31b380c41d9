"""A GPU whose memory somebody else holds. Needs a CUDA device."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime as ort

from service.errors import EngineError
from service.onnx import cuda

LARGEST, SMALLEST = 2**32, 2**21
MEBIBYTE = 2**20


@contextmanager
def full_device(leave: int) -> Iterator[None]:
    """Take all of device 0's memory but about `leave` bytes, until the block ends."""
    ort.preload_dlls(directory="")
    cuda.load_libraries(ort.cuda_version)
    library = cuda.runtime(ort.cuda_version)
    taken: list[ctypes.c_void_p] = []
    size = LARGEST
    try:
        while size >= SMALLEST:
            free, _ = cuda.memory(0, library)
            if free - size < leave:
                size //= 2
                continue
            address = ctypes.c_void_p()
            try:
                cuda.call(library, "cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
            except EngineError:
                size //= 2
            else:
                taken.append(address)
        yield
    finally:
        for address in taken:
            cuda.call(library, "cudaFree", address)
