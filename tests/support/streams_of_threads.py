"""CUDA's runtime as its documentation has it, on the host: a stream is a thread, and takes its time.

Nothing is done by the time that it is asked for, but for what CUDA promises to wait for. So what is not
ordered by an event or a stream comes in the wrong order here, and the answers are wrong.
"""

import ctypes
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime as ort

INVALID_HANDLE = 400
LONGEST_SECONDS = 0.004


class _Stream:
    """Does its work in order, each piece after a while. hold: stop before the next one."""

    def __init__(self, name: str, seed: int) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self._random = random.Random(seed)
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, work: Callable[[], object]) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while True:
            work = self._work.get()
            time.sleep(self._random.uniform(0, LONGEST_SECONDS))
            self.hold.wait(30)
            work()


class RuntimeOfThreads:
    """The functions that `service.onnx.streams` calls, by their names.

    done: what each stream did, in order. error: what recording and waiting give. failing: which copies fail.
    """

    def __init__(self) -> None:
        self.streams: list[_Stream] = []
        self.done: list[str] = []
        self.devices: list[int] = []
        self.error = 0
        self.failing = ""
        self.cudaGetErrorName = self.cudaGetErrorString = _Text()
        self._events: list[threading.Event] = []

    def compute(self, work: Callable[[], object]) -> None:
        """Let the second stream, which computes, do this after what it has to do already."""
        self._put(2, "compute", work)

    def settle(self) -> None:
        """Let all streams come to the end of their work."""
        self.error = 0
        for number, stream in enumerate(self.streams, 1):
            stream.hold.set()
            self.cudaStreamSynchronize(ctypes.c_void_p(number))

    def _put(self, stream: int, name: str, work: Callable[[], object]) -> None:
        def run() -> None:
            work()
            self.done.append(name)

        self.streams[stream - 1].put(run)

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802 - CUDA's name, as are those that follow
        self.devices.append(device)
        return 0

    def cudaStreamCreateWithFlags(self, handle: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1, "a stream that waits for the default one would overlap with nothing"
        self.streams.append(_Stream(f"stream-{len(self.streams) + 1}", len(self.streams)))
        handle._obj.value = len(self.streams)
        return 0

    def cudaEventCreateWithFlags(self, handle: Any, flags: int) -> int:  # noqa: N802
        assert flags == 2
        never_recorded = threading.Event()
        never_recorded.set()
        self._events.append(never_recorded)
        handle._obj.value = len(self._events)
        return 0

    def cudaGetLastError(self) -> int:  # noqa: N802
        return self.error

    def cudaEventDestroy(self, event: ctypes.c_void_p) -> int:  # noqa: N802
        del event
        return 0

    def cudaEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:  # noqa: N802
        assert event.value
        assert stream.value
        self._events[event.value - 1] = recorded = threading.Event()
        self.streams[stream.value - 1].put(recorded.set)
        return self.error

    def cudaStreamWaitEvent(self, stream: ctypes.c_void_p, event: ctypes.c_void_p, flags: int) -> int:  # noqa: N802
        assert event.value
        assert stream.value
        assert not flags
        recorded = self._events[event.value - 1]
        self.streams[stream.value - 1].put(lambda: recorded.wait(30))
        return 0

    def cudaEventSynchronize(self, event: ctypes.c_void_p) -> int:  # noqa: N802
        assert event.value
        if self.error:
            return self.error  # an older one, without waiting
        assert self._events[event.value - 1].wait(30), "the event never came"
        return 0

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:  # noqa: N802
        assert stream.value
        idle = threading.Event()
        self.streams[stream.value - 1].put(idle.set)
        assert idle.wait(30)
        return self.error

    def cudaMemcpyAsync(  # noqa: N802
        self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int, stream: Any
    ) -> int:
        assert stream.value == {1: 1, 2: 3}[kind], "a copy on another direction's stream"
        name = {1: "copy in", 2: "copy out"}[kind]
        if name == self.failing:
            return INVALID_HANDLE
        self._put(stream.value, name, lambda: ctypes.memmove(to.value or 0, source.value or 0, size.value))
        return 0


class _Text:
    restype: object = None

    def __call__(self, code: int) -> bytes:
        return {INVALID_HANDLE: b"cudaErrorInvalidResourceHandle"}.get(code, b"no error")


class SessionOnAStream:
    """A real session on the CPU, whose runs with bound memory are put on the computing stream."""

    def __init__(self, session: ort.InferenceSession, runtime: RuntimeOfThreads) -> None:
        self._session = session
        self._runtime = runtime
        self.error: Exception | None = None
        self.graph_ids: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        if self.error is not None:
            raise self.error
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        self._runtime.compute(lambda: self._session.run_with_iobinding(binding))


@contextmanager
def held(stream: _Stream) -> Iterator[None]:
    """Meanwhile the stream does nothing."""
    stream.hold.clear()
    try:
        yield
    finally:
        stream.hold.set()
