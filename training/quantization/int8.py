"""A classifier's float32 graph as an int8 graph, calibrated on images, and the check of its integers.

Every layer but the last becomes integer arithmetic: bytes by 7-bit weights, one scale per output
channel, 32-bit sums. The reasons, measured on MNIST's 5,000 validation images and on one AVX2 core
(Zen 3), in images/s at batch 64 against float32:

- 8-bit weights saturate AVX2's 16-bit sums of two products (255 * 127 * 2 > 32767): the CNN's errors
  rose from 20 to 27. With 7 bits (255 * 64 * 2 < 32768) no sum can, and CPUs with VNNI, whose
  instructions sum in 32 bits, give the same bits.
- Unsigned weights do not saturate either, but are slower: the MLP gains 1.6 times with them, 2.0
  without; the CNN 1.2 with, 1.7 without.
- One scale per tensor cost an error more (CNN, 21) and was at most 3 % faster.
- Minimum and maximum over 500 images did as well as entropy and percentiles (20 or 21 errors all).
- Dynamic quantisation slows the CNN down (0.65 times), and takes its scales from the whole batch, so
  a row's result would depend on the rest of its batch.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

from service.models.manifest import MODEL_FILE
from training.errors import QuantizationError
from training.onnx_files import Arrays, run_in_parts, strip

LAYERS = ("Conv", "Gemm", "MatMul")
# The operators between two layers that also have integer kernels.
BETWEEN = ("Relu", "MaxPool", "Reshape", "Flatten")

# Between the integer kernels and the same graph computed in float: a float sum that rounds to the other
# side moves a hidden activation by one level of 255. Measured: 0.0025; with saturation 0.06 to 0.7.
PARITY_TOLERANCE = 0.01


def load_float32(path: Path) -> onnx.ModelProto:
    """Read a graph to put on fewer bits.

    Raises QuantizationError if it is on fewer bits already, or has weights in other files.
    """
    graph = onnx.load(path, load_external_data=False)
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in graph.graph.initializer):
        raise QuantizationError(f"{path} keeps weights in other files, expected all of them inside")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.graph.node):
        raise QuantizationError(f"{path} is quantised already")
    if any(each.data_type == onnx.TensorProto.FLOAT16 for each in graph.graph.initializer):
        raise QuantizationError(f"{path} computes in float16 already")
    return graph


def to_int8(graph: onnx.ModelProto, calibration: NDArray[np.uint8]) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear nodes, which onnxruntime fuses into integer layers.

    calibration: (n, 28, 28), from whose activations the scales are taken.
    The last layer, which decides between two close classes, stays float32. Raises QuantizationError.
    """
    layers = [node.name for node in graph.graph.node if node.op_type in LAYERS]
    if len(layers) < 2:
        raise QuantizationError(
            f"the graph has {len(layers)} layers ({', '.join(LAYERS)}), expected 2 or more"
        )
    with _quiet_quantizer(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        quantize_static(
            graph,
            path,
            _Reader(graph.graph.input[0].name, calibration),
            op_types_to_quantize=[*LAYERS, *BETWEEN],
            nodes_to_exclude=layers[-1:],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        quantized = onnx.load(path)
    _read_bytes(quantized.graph)
    strip(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


class _Reader:
    """Gives onnxruntime the calibration images, as a CalibrationDataReader does."""

    def __init__(self, name: str, images: NDArray[np.uint8], rows: int = 50) -> None:
        self._parts: Iterator[Arrays] = iter(
            [{name: images[i : i + rows]} for i in range(0, len(images), rows)]
        )

    def get_next(self) -> Arrays | None:
        return next(self._parts, None)


def _read_bytes(graph: onnx.GraphProto) -> None:
    """Let the first layer read the bytes, which are bytes / 255 quantised with scale 1/255, zero point 0.

    Removes Cast, Div and QuantizeLinear between the input and the first layer; a graph that scales its
    input otherwise stays as it is.
    """
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    by_output = {node.output[0]: node for node in graph.node}
    to_levels = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    scale, zero = (values[name] for name in to_levels.input[1:])
    shapes, before = [], by_output.get(to_levels.input[0])
    while before is not None and before.op_type in ("Reshape", "Flatten", "Unsqueeze"):
        shapes.append(before)
        before = by_output.get(before.input[0])
    cast = by_output.get(before.input[0]) if before is not None and before.op_type == "Div" else None
    if before is None or cast is None or cast.op_type != "Cast":
        return
    if values[before.input[1]] != 255 or scale != np.float32(1 / 255) or zero != 0:
        return
    _replace_input(graph, before.output[0], cast.input[0])
    _replace_input(graph, to_levels.output[0], to_levels.input[0])
    for node in (cast, before, to_levels):
        graph.node.remove(node)


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Silence onnxruntime's advice to pre-process: the exporter has folded the graph already."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def check_integers(path: Path, images: NDArray[np.uint8]) -> float:
    """Compare the integer layers with the same graph computed in float, which cannot saturate.

    Returns the largest difference of any probability. Raises QuantizationError.
    """
    integer, floating = (
        run_in_parts(single_threaded_session(path, optimised), ["probabilities"], {"images": images})[0]
        for optimised in (True, False)
    )
    difference = float(np.abs(integer - floating).max())
    if not difference <= PARITY_TOLERANCE:
        raise QuantizationError(
            f"probabilities differ by {difference:.3g} between integer arithmetic and float, "
            f"expected at most {PARITY_TOLERANCE:g}"
        )
    return difference


def single_threaded_session(path: Path, optimised: bool = True) -> onnxruntime.InferenceSession:
    """A session on one CPU thread; without `optimised`, quantised layers are computed in float."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
