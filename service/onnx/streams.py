"""CUDA's streams, events and asynchronous copies, called in its runtime.

onnxruntime's Python API accepts a stream for compute but copies on none. Follows CUDA's Runtime API, "Stream
Management", "Event Management" and cudaMemcpyAsync. Knows nothing of sessions, models or batches.
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
"""cudaStreamNonBlocking: the stream and CUDA's default stream do not wait for each other."""

DISABLE_TIMING = 2
"""cudaEventDisableTiming."""

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
"""cudaMemcpyKind."""


class Event:
    """A point in a stream's work. Another `record` moves it to a later point."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.handle = ctypes.c_void_p()
        cuda.call(library, "cudaEventCreateWithFlags", ctypes.byref(self.handle), DISABLE_TIMING)
        # When the process exits, the driver frees everything.
        weakref.finalize(self, library.cudaEventDestroy, self.handle).atexit = False

    def wait(self) -> None:
        """Block the calling thread until the stream reaches this point.

        Raises EngineError if the stream's work failed.
        """
        cuda.call(self._library, "cudaEventSynchronize", self.handle)


class Stream:
    """Work that a GPU does in order, concurrently with other streams. Every method raises EngineError."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.handle = ctypes.c_void_p()
        cuda.call(library, "cudaStreamCreateWithFlags", ctypes.byref(self.handle), NON_BLOCKING)

    def copy_to_device(self, array: Array, address: int) -> None:
        """Copy a contiguous array to the device. Do not modify it until the copy has completed."""
        self._copy(address, array.ctypes.data, array.nbytes, HOST_TO_DEVICE)

    def copy_from_device(self, address: int, array: Array) -> None:
        """Fill a contiguous array from the device. Do not read it until the copy has completed."""
        self._copy(array.ctypes.data, address, array.nbytes, DEVICE_TO_HOST)

    def record(self, event: Event) -> None:
        """Move the event to the end of the stream's work so far."""
        cuda.call(self._library, "cudaEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Hold later work of this stream until another stream's event; returns at once."""
        cuda.call(self._library, "cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Block the calling thread until all work of the stream is done."""
        cuda.call(self._library, "cudaStreamSynchronize", self.handle)

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        # Without argtypes ctypes would pass an address as a C int.
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, self.handle
        cuda.call(self._library, "cudaMemcpyAsync", *arguments)


class Streams:
    """A device's three streams: copies to it, compute, copies back. Shared by all models, never destroyed.

    library: CUDA's runtime, see `service.onnx.cuda.runtime`.
    """

    def __init__(self, library: ctypes.CDLL, device_id: int) -> None:
        self.library = library
        self._device_id = device_id
        self.use_device()
        self.copy_in, self.compute, self.copy_out = (Stream(library) for _ in range(3))

    def use_device(self) -> None:
        """Make this the device of the calling thread's CUDA calls; the default is the first device."""
        cuda.call(self.library, "cudaSetDevice", self._device_id)

    def drain(self) -> None:
        """Wait, after an error, until no stream uses any memory."""
        for stream in (self.copy_in, self.compute, self.copy_out):
            try:
                stream.synchronize()
            except EngineError as error:  # most likely the error that the caller is handling
                logger.warning("a stream of the GPU failed: %s", error)


@cache
def streams_of(device_id: int, version: str) -> Streams:
    """Return a device's streams. version: CUDA's, such as 13.0. Raises EngineError."""
    return Streams(cuda.runtime(version), device_id)
