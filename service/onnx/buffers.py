"""Fixed buffers bound to an onnxruntime session: in host memory, or in a GPU's.

Knows nothing of models or batches. What is said of CUDA follows onnxruntime-gpu 1.31.1: its documentation,
its Python sources and the names in its libraries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import onnxruntime as ort

from service.models.tensors import Array
from service.onnx.streams import Event, Streams

GPU_MEMORY = "cuda"
"""onnxruntime's name for the memory of NVIDIA's GPUs."""


class Binding(Protocol):
    """Runs a session on buffers that were given once, from one thread at a time."""

    def begin(self, rows: int) -> None:
        """Run on what the input arrays hold now; may return before that is done. rows: that matter."""
        ...

    def end(self) -> tuple[Array, ...]:
        """Wait for what was begun. Returns the outputs, which the next run may overwrite."""
        ...


class HostBinding:
    """The graph reads and writes the caller's arrays. inputs, outputs: by tensor name, contiguous."""

    def __init__(
        self, session: ort.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = tuple(inputs.values())  # kept, because the binding holds bare addresses
        self._outputs = tuple(outputs.values())
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def begin(self, rows: int) -> None:
        """Run on the arrays themselves, to the end; see `Binding.begin`."""
        del rows
        self._session.run_with_iobinding(self._binding)

    def end(self) -> tuple[Array, ...]:
        """See `Binding.end`."""
        return self._outputs


@dataclass(frozen=True)
class Mirror:
    """A tensor's memory on the host and on a GPU."""

    host: Array
    device: ort.OrtValue

    @classmethod
    def of(cls, host: Array, device_id: int) -> Self:
        """Memory on a GPU for what the array holds."""
        return cls(host, ort.OrtValue.ortvalue_from_numpy(host, GPU_MEMORY, device_id))


class DeviceBinding:
    """The graph reads and writes buffers of a GPU; each run copies the inputs there and the outputs back.

    inputs, outputs: by tensor name, contiguous arrays of the shapes to allocate.
    graph_id: names the CUDA graph, where the session captures any: one for each set of buffers, because a
        replay uses the addresses of its capture. At least 1; 0 is onnxruntime's own.

    All is synchronous: `update_inplace` and `numpy` are blocking copies, and a run ends when its stream has.
    The caller may have pinned the inputs' memory, see `service.onnx.cuda`; onnxruntime allocates the outputs
    of each run.
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
        self._inputs = [Mirror.of(array, device_id) for array in inputs.values()]
        self._outputs = [Mirror.of(array, device_id) for array in outputs.values()]
        for name, mirror in zip(inputs, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, mirror.device)
        for name, mirror in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, mirror.device)

    def begin(self, rows: int) -> None:
        """Copy in and run, to the end; see `Binding.begin`. With CUDA graphs: always from the same thread."""
        del rows
        for mirror in self._inputs:
            mirror.device.update_inplace(mirror.host)
        self._session.run_with_iobinding(self._binding, self._options)

    def end(self) -> tuple[Array, ...]:
        """Copy out; see `Binding.end`."""
        return tuple(mirror.device.numpy() for mirror in self._outputs)


class OverlappedBinding:
    """Copies and runs on streams, so that one batch's copies overlap with another's compute.

    session: computes on `streams.compute` (onnxruntime's option user_compute_stream).
    inputs, outputs: by tensor name. The binding takes the first `size` rows. Two bindings of the same
        memory must not run at a time.
    device_id: of which GPU the memory is.
    graph_id: as for `DeviceBinding`.

    The events order what would race: compute starts after the copy in, the copy out after compute. That
    no buffer is written while it is read is the caller's to see to: it ends a run before it begins the next
    on the same memory. The host's memory is pinned, so that none of this blocks before `end`.
    That a run only starts what it computes is onnxruntime's run option, which a CUDA graph's replay heeds
    too (onnxruntime's pull requests 14088 and 28686).
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        size: int,
        inputs: Mapping[str, Mirror],
        outputs: Mapping[str, Mirror],
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
        for mirrors, bind in ((inputs, self._binding.bind_input), (outputs, self._binding.bind_output)):
            for name, mirror in mirrors.items():
                shape = (size, *mirror.host.shape[1:])
                bind(name, GPU_MEMORY, device_id, mirror.host.dtype, shape, mirror.device.data_ptr())

    def begin(self, rows: int) -> None:
        """Start copies and run; see `Binding.begin`. With CUDA graphs: always from the same thread."""
        self._rows = rows
        streams = self._streams
        streams.use_device()
        try:
            for mirror in self._inputs:
                streams.copy_in.copy_to_device(mirror.host[:rows], mirror.device.data_ptr())
            streams.copy_in.record(self._copied_in)
            streams.compute.wait_for(self._copied_in)
            self._session.run_with_iobinding(self._binding, self._options)
            streams.compute.record(self._computed)
            streams.copy_out.wait_for(self._computed)
            for mirror in self._outputs:
                streams.copy_out.copy_from_device(mirror.device.data_ptr(), mirror.host[:rows])
            streams.copy_out.record(self._copied_out)
        except Exception:
            streams.drain()  # the caller may fill these buffers again
            raise

    def end(self) -> tuple[Array, ...]:
        """Wait for the outputs' copies; see `Binding.end`."""
        try:
            self._copied_out.wait()
        except Exception:
            self._streams.drain()  # as above: the error may be older than the copies
            raise
        return tuple(mirror.host[: self._rows] for mirror in self._outputs)
