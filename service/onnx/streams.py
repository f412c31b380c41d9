"""CUDA's streams and events, by its runtime: onnxruntime's Python API takes a stream but copies on none.

Knows nothing of sessions, models or batches. Follows CUDA's Runtime API, "Stream Management", "Event
Management" and cudaMemcpyAsync. Has not run on a GPU yet.
"""

import ctypes
import logging
import weakref
from functools import cache

from service.errors import EngineError
from service.models.tensors import Array
from service.onnx import cuda

logger = logging.getLogger(__name__)

NON_BLOCKING = 1
"""cudaStreamNonBlocking: the stream does not wait for CUDA's default stream, nor that for it."""

DISABLE_TIMING = 2
"""cudaEventDisableTiming."""

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
"""cudaMemcpyKind."""


class Event:
    """A point in a stream's work. `record` again moves it to a later one."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.handle = ctypes.c_void_p()
        cuda.call(library, "cudaEventCreateWithFlags", ctypes.byref(self.handle), DISABLE_TIMING)
        # At the process's end the driver takes back all at once.
        weakref.finalize(self, library.cudaEventDestroy, self.handle).atexit = False

    def wait(self) -> None:
        """Block the calling thread until the stream has come here. Raises EngineError if its work failed."""
        cuda.call(self._library, "cudaEventSynchronize", self.handle)


class Stream:
    """Work of a GPU that is done in order, beside that of other streams. Raises EngineError throughout."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.handle = ctypes.c_void_p()
        cuda.call(library, "cudaStreamCreateWithFlags", ctypes.byref(self.handle), NON_BLOCKING)

    def copy_to_device(self, array: Array, address: int) -> None:
        """Copy a contiguous array to the device. It may change only after what follows in the stream."""
        self._copy(address, array.ctypes.data, array.nbytes, HOST_TO_DEVICE)

    def copy_from_device(self, address: int, array: Array) -> None:
        """Fill a contiguous array from the device. It holds that only after what follows in the stream."""
        self._copy(array.ctypes.data, address, array.nbytes, DEVICE_TO_HOST)

    def record(self, event: Event) -> None:
        """Let the event be where the stream's work ends now."""
        cuda.call(self._library, "cudaEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Do no later work before the event, which is another stream's; the caller does not wait."""
        cuda.call(self._library, "cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Block the calling thread until all work is done."""
        cuda.call(self._library, "cudaStreamSynchronize", self.handle)

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        # Without argtypes ctypes would pass an address as a C int.
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, self.handle
        cuda.call(self._library, "cudaMemcpyAsync", *arguments)


class Streams:
    """A device's three streams: to it, on it, and back. They are all models' and are never destroyed.

    library: CUDA's runtime, see `service.onnx.cuda.runtime`.
    """

    def __init__(self, library: ctypes.CDLL, device_id: int) -> None:
        self.library = library
        self._device_id = device_id
        self.use_device()
        self.copy_in, self.compute, self.copy_out = (Stream(library) for _ in range(3))

    def use_device(self) -> None:
        """Let what this thread asks of CUDA concern this device; by default that is the first."""
        cuda.call(self.library, "cudaSetDevice", self._device_id)

    def drain(self) -> None:
        """After an error: wait until no stream touches any memory."""
        for stream in (self.copy_in, self.compute, self.copy_out):
            try:
                stream.synchronize()
            except EngineError as error:  # most likely the one that is being handled
                logger.warning("a stream of the GPU failed: %s", error)


@cache
def streams_of(device_id: int, version: str) -> Streams:
    """A device's streams. version: CUDA's, such as 13.0. Raises EngineError."""
    return Streams(cuda.runtime(version), device_id)
