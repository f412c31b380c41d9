"""Fixed buffers bound to an onnxruntime session: in host memory, or in a GPU's.

Knows nothing of models or batches. What is said of CUDA follows onnxruntime-gpu 1.31.1: its documentation,
its Python sources and the names in its libraries.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


class Binding(Protocol):
    """Runs a session on buffers that were given once."""

    def run(self) -> tuple[Array, ...]:
        """Run on what the input arrays hold now, from one thread at a time; blocks.

        Returns the outputs, which the next run may overwrite.
        """
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

    def run(self) -> tuple[Array, ...]:
        """Run on the arrays themselves; see `Binding.run`."""
        self._session.run_with_iobinding(self._binding)
        return self._outputs


class DeviceBinding:
    """The graph reads and writes buffers of a GPU; each run copies the inputs there and the outputs back.

    inputs, outputs: by tensor name, contiguous arrays of the shapes to allocate.
    graph_id: names the CUDA graph, where the session captures any: one for each set of buffers, because a
        replay uses the addresses of its capture. At least 1; 0 is onnxruntime's own.

    All is synchronous: `update_inplace` and `numpy` are blocking copies, and a run ends when its stream has.
    A copy is not overlapped with another batch's compute, because that takes two runs at a time, which a
    session with CUDA graphs does not allow, nor streams for copies, which the Python API does not have.
    The caller may have pinned the inputs' memory, see `service.cuda`; outputs go to arrays that onnxruntime
    makes for each run.
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
        self._inputs = [
            (array, ort.OrtValue.ortvalue_from_numpy(array, "cuda", device_id)) for array in inputs.values()
        ]
        self._outputs = [
            ort.OrtValue.ortvalue_from_numpy(array, "cuda", device_id) for array in outputs.values()
        ]
        for name, (_, value) in zip(inputs, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self) -> tuple[Array, ...]:
        """Copy in, run, copy out; see `Binding.run`. With CUDA graphs: always from the same thread."""
        for array, value in self._inputs:
            value.update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        return tuple(value.numpy() for value in self._outputs)
