"""Garbage collection and the C library's free memory, tuned for a long-running service."""

import ctypes
import gc

YOUNG = 20_000
"""Python's threshold of 700 objects is two batches of 64 requests, which reference counting frees anyway:
with this one a request's Python code takes 10 us instead of 12."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGE_BYTES = 512 * 1024
"""Above a raw body of 256 MNIST images: mapping takes microseconds and page faults."""

KEPT_BYTES = 4 * 1024 * 1024
"""More than sixteen connections free at once in raw bodies of 256 MNIST images."""


def disable_gc() -> None:
    """Disable garbage collection until `freeze_and_enable_gc` is called.

    Startup allocates many lasting objects and next to no garbage, 0.4 MB; collections took 70 ms of CPU time.
    """
    gc.disable()


def freeze_and_enable_gc() -> None:
    """Enable garbage collection, but freeze everything allocated so far: modules, models, the application.

    Requests make full collections frequent, and each took 20 to 40 ms: at 64 connections p99 was 14 to 38 ms
    without this, 5 to 10 ms with it.
    """
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    gc.enable()


def map_large_blocks() -> None:
    """Have the C library map each large block by itself, and unmap it when it is freed.

    Without this glibc raises the size of large blocks, up to 32 MB, each time that one is freed, and bodies
    that grow side by side can leave holes in the heap. Sixteen JSON bodies, of which 5.5 MB were held, grew
    the service by 17 MB without this and by 13.5 with it. Has no effect with other C libraries.
    """
    _mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def keep_end_of_heap() -> None:
    """Have the C library keep up to KEPT_BYTES that are free at the end of its heap, for the next request.

    Once a threshold is set, glibc gives back all but 128 kB there, and the next body faults its pages in
    again: 9 page faults per raw body of 64 images, 15 per body of 256, and none with this. Has no effect with
    other C libraries.
    """
    _mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def give_back_free_memory() -> None:
    """Return the C library's free memory to the system; takes about a millisecond.

    glibc keeps freed memory, separately for each thread: for every opened model, the bytes of its file and
    the weights that onnxruntime has since packed. Has no effect with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
