"""Fixed buffers bound to an onnxruntime session, in host memory or on a GPU.

Knows nothing of models or batches. Statements about CUDA follow onnxruntime-gpu 1.31.1: its documentation,
its Python sources and the symbols of its libraries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import onnxruntime as ort

from service.models.tensors import Array
from service.onnx.streams import Event, Streams

GPU_MEMORY = "cuda"
"""onnxruntime's name for NVIDIA GPU memory."""


class Binding(Protocol):
    """Runs a session on fixed buffers; one thread at a time may call it."""

    def launch(self, rows: int) -> None:
        """Start a run on the current inputs; may return before it is done. rows: without the padding."""
        ...

    def wait(self) -> tuple[Array, ...]:
        """Wait for the run. Returns the outputs, which the next run may overwrite."""
        ...


class HostBinding:
    """The graph reads and writes the caller's arrays. inputs, outputs: by tensor name, contiguous."""

    def __init__(
        self, session: ort.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = tuple(inputs.values())  # kept alive, because the binding holds only addresses
        self._outputs = tuple(outputs.values())
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def launch(self, rows: int) -> None:
        """Run on the arrays themselves and wait; see `Binding.launch`."""
        del rows
        self._session.run_with_iobinding(self._binding)

    def wait(self) -> tuple[Array, ...]:
        """See `Binding.wait`."""
        return self._outputs


@dataclass(frozen=True)
class DeviceBuffer:
    """A tensor's memory on a GPU, and the host memory that it is copied from or to."""

    host: Array
    device: ort.OrtValue

    @classmethod
    def of(cls, host: Array, device_id: int) -> Self:
        """Allocate memory on a GPU for the array's contents."""
        return cls(host, ort.OrtValue.ortvalue_from_numpy(host, GPU_MEMORY, device_id))


class DeviceBinding:
    """The graph reads and writes GPU memory; each run copies the inputs there and the outputs back.

    inputs, outputs: by tensor name, contiguous arrays of the shapes to allocate.
    graph_id: the id of the CUDA graph, if the session captures graphs. Each set of buffers has its own,
        because a replay uses the addresses of its capture. At least 1; 0 is onnxruntime's own.

    Everything is synchronous: `update_inplace` and `numpy` are blocking copies, and a run returns when its
    stream is done. The caller may have pinned the inputs' memory, see `service.onnx.cuda`; onnxruntime
    allocates each run's outputs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        device_id: int,
        graph_id: int,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._inputs = [DeviceBuffer.of(array, device_id) for array in inputs.values()]
        self._outputs = [DeviceBuffer.of(array, device_id) for array in outputs.values()]
        for name, buffer in zip(inputs, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, buffer.device)
        for name, buffer in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, buffer.device)

    def launch(self, rows: int) -> None:
        """Copy in, run and wait; see `Binding.launch`. With CUDA graphs, always call it from one thread."""
        del rows
        for buffer in self._inputs:
            buffer.device.update_inplace(buffer.host)
        self._session.run_with_iobinding(self._binding, self._options)

    def wait(self) -> tuple[Array, ...]:
        """Copy out; see `Binding.wait`."""
        return tuple(buffer.device.numpy() for buffer in self._outputs)


class OverlappedBinding:
    """Copies and runs on streams, so that one batch's copies overlap with another's compute.

    session: computes on `streams.compute` (onnxruntime's option user_compute_stream).
    inputs, outputs: by tensor name. The binding uses the first `size` rows. Two bindings of the same memory
        must not run at the same time.
    device_id: the GPU that holds the memory.
    graph_id: as for `DeviceBinding`.

    Events prevent races: compute starts after the copy in, the copy out after compute. The caller must not
    overwrite a buffer in use: it ends one run before it begins the next on the same memory. The host memory
    is pinned, so nothing blocks before `wait`. A run option makes onnxruntime return once the work is
    launched; the replay of a CUDA graph respects it too (onnxruntime's pull requests 14088 and 28686).
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        size: int,
        inputs: Mapping[str, DeviceBuffer],
        outputs: Mapping[str, DeviceBuffer],
        device_id: int,
        graph_id: int,
        streams: Streams,
    ) -> None:
        self._session = session
        self._streams = streams
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._inputs, self._outputs = tuple(inputs.values()), tuple(outputs.values())
        self._copied_in, self._computed, self._copied_out = (Event(streams.library) for _ in range(3))
        self._rows = 0
        for buffers, bind in ((inputs, self._binding.bind_input), (outputs, self._binding.bind_output)):
            for name, buffer in buffers.items():
                shape = (size, *buffer.host.shape[1:])
                bind(name, GPU_MEMORY, device_id, buffer.host.dtype, shape, buffer.device.data_ptr())

    def launch(self, rows: int) -> None:
        """Launch copies and run; see `Binding.launch`. With CUDA graphs, always call it from one thread."""
        self._rows = rows
        streams = self._streams
        streams.use_device()
        try:
            for buffer in self._inputs:
                streams.copy_in.copy_to_device(buffer.host[:rows], buffer.device.data_ptr())
            streams.copy_in.record(self._copied_in)
            streams.compute.wait_for(self._copied_in)
            self._session.run_with_iobinding(self._binding, self._options)
            streams.compute.record(self._computed)
            streams.copy_out.wait_for(self._computed)
            for buffer in self._outputs:
                streams.copy_out.copy_from_device(buffer.device.data_ptr(), buffer.host[:rows])
            streams.copy_out.record(self._copied_out)
        except Exception:
            streams.drain()  # the caller may refill these buffers
            raise

    def wait(self) -> tuple[Array, ...]:
        """Wait for the copies of the outputs; see `Binding.wait`."""
        try:
            self._copied_out.wait()
        except Exception:
            self._streams.drain()  # as above: the error may have come before the copies
            raise
        return tuple(buffer.host[: self._rows] for buffer in self._outputs)
