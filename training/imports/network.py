"""A network as it was exported: its input, and what it computes for single rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from service.models.manifest import Datatype
from service.models.tensors import DTYPES
from training.errors import NetworkError
from training.imports.normalization import Normalization
from training.onnx_files import open_graph, replace_parts

NUMBERS: dict[int, Datatype] = {
    helper.np_dtype_to_tensor_dtype(dtype): datatype for datatype, dtype in DTYPES.items()
}
"""The service's datatypes by ONNX's numbers."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

LEAST_OPSET = 8
"""The first version of ONNX's operators with Expand, which `free_batch_axis` adds."""

MOST_BYTES = 2**31 - 1
"""The largest message that protobuf writes."""

Layout = Literal["channels first", "channels last", "grey"]
"""How a row of floats holds an image; a grey one has no axis of channels."""


@dataclass(frozen=True)
class Input:
    """The input of a network.

    shape: of a row. batch: the fixed size of the batch axis, or None. layout: None if rows are no images.
    """

    name: str
    datatype: int
    shape: tuple[int, ...]
    batch: int | None
    layout: Layout | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype."""
        return helper.tensor_dtype_to_np_dtype(self.datatype)

    @property
    def channels(self) -> int:
        """The number of an image's channels."""
        return {"channels first": self.shape[0], "channels last": self.shape[-1]}.get(self.layout or "", 1)

    @property
    def served_shape(self) -> tuple[int, ...]:
        """The shape of a row of the served graph: an image's channels come last."""
        return (*self.shape[1:], self.shape[0]) if self.layout == "channels first" else self.shape


def read_network(path: Path) -> ModelProto:
    """Return the graph of a file, with all of its weights. Raises NetworkError."""
    try:
        model = onnx.load(path)
    except OSError:
        raise
    except Exception as error:  # protobuf and onnx raise their own types
        raise NetworkError(f"{path} is no ONNX graph: {error}") from None
    if not model.graph.node:
        raise NetworkError(f"{path} is no ONNX graph: it has no nodes")
    if not _names_are_texts(model.graph):
        raise NetworkError(f"{path} is no ONNX graph: a name in it is not UTF-8")
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise NetworkError(
            f"{path} uses version {opset} of ONNX's operators, expected at least {LEAST_OPSET}: "
            "onnx.version_converter raises it"
        )
    if model.ByteSize() > MOST_BYTES:
        raise NetworkError(f"{path} has {model.ByteSize()} bytes, expected at most {MOST_BYTES}")
    _hide_initializers(model)
    _remove_zipmaps(model)
    return model


def _names_are_texts(graph: onnx.GraphProto) -> bool:
    """Whether the names in a graph are UTF-8. If one is not, protobuf returns bytes or raises an error."""
    try:
        named = [*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
        names = [
            name for node in graph.node for name in (node.op_type, node.domain, *node.input, *node.output)
        ]
        names += [attribute.name for node in graph.node for attribute in node.attribute]
        return all(isinstance(name, str) for name in (*names, *(each.name for each in named)))
    except UnicodeDecodeError:
        return False


def _hide_initializers(model: ModelProto) -> None:
    """Take the weights out of the inputs, where the first versions of ONNX list them too."""
    initializers = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in initializers]
    replace_parts(model.graph.input, inputs)
    model.ir_version = max(model.ir_version, 4)


def _remove_zipmaps(model: ModelProto) -> None:
    """Let outputs that skl2onnx made dictionaries for each row be tensors again."""
    for node in model.graph.node:
        if node.op_type == "ZipMap":
            made = helper.make_node("Identity", node.input, node.output)
            node.CopyFrom(made)
            for output in model.graph.output:
                if output.name == made.output[0]:
                    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, None))


def is_dynamic(model: ModelProto) -> bool:
    """Whether a graph chooses scales of its activations when it runs."""
    return any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)


def find_input(
    model: ModelProto,
    shape: Sequence[int] | None = None,
    hint: Sequence[int] | None = None,
    *,
    pictures: bool = False,
) -> Input:
    """Return the only input of a graph. Raises NetworkError.

    shape: of a row, as the user knows it. hint: the same where axes are free, as other files tell it.
    pictures: whether rows (height, width) are images; they could also be anything else.
    """
    if len(model.graph.input) != 1:
        raise NetworkError(f"the inputs are {[each.name for each in model.graph.input]}, expected one")
    (value,) = model.graph.input
    datatype = value.type.tensor_type.elem_type
    batch, row = _sizes(value, shape, shape or hint or [], "")
    if not row:
        raise NetworkError(f"input {value.name} has single numbers as rows, expected several in each")
    return Input(value.name, datatype, row, batch, _layout(datatype, row, pictures=pictures))


def find_inputs(
    model: ModelProto, shape: Sequence[int] | None = None, sizes: Mapping[str, int] | None = None
) -> list[Input]:
    """Return all inputs of a graph, none of which is an image. Raises NetworkError.

    shape: of a row, if there is one input. sizes: of free axes by their names.
    """
    values = model.graph.input
    if not values or (shape is not None and len(values) > 1):
        raise NetworkError(f"the inputs are {[each.name for each in values]}, expected one with a --shape")
    found = []
    for value in values:
        for axis in value.type.tensor_type.shape.dim[1:]:
            if axis.dim_param in (sizes or {}):
                axis.dim_value = (sizes or {})[axis.dim_param]
        batch, row = _sizes(value, shape, shape or [], ", or of a named axis in --axis")
        found.append(Input(value.name, value.type.tensor_type.elem_type, row, batch, None))
    if len({each.batch for each in found}) > 1:
        seen = ", ".join(f"{each.name} {each.batch or 'any'}" for each in found)
        raise NetworkError(f"the inputs have batches of different sizes: {seen}, expected the same")
    return found


def _sizes(
    value: ValueInfoProto, shape: Sequence[int] | None, filler: Sequence[int], advice: str
) -> tuple[int | None, tuple[int, ...]]:
    """Return the fixed size of an input's batch, or None, and the shape of a row. Raises NetworkError.

    shape: of a row, as the user knows it. filler: sizes of the axes that the graph leaves free.
    advice: another way to give these sizes, for the error.
    """
    datatype = value.type.tensor_type.elem_type
    if datatype not in NUMBERS:
        seen = TensorProto.DataType.Name(datatype)
        raise NetworkError(f"input {value.name} has datatype {seen}, expected numbers")
    dimensions = value.type.tensor_type.shape.dim
    batch, *axes = [each.dim_value if each.dim_value > 0 else None for each in dimensions] or [None]
    if len(filler) == len(axes):
        axes = [axis or size for axis, size in zip(axes, filler, strict=True)]
    row = tuple(size for size in axes if size is not None)
    if len(row) != len(axes) or row != tuple(shape or row):
        seen = ", ".join(str(each.dim_value or each.dim_param or "?") for each in dimensions)
        given = "" if shape is None else f", but --shape is {' '.join(map(str, shape))}"
        raise NetworkError(
            f"input {value.name} is ({seen}){given}; expected a batch axis and fixed sizes, or the sizes "
            f"of a row in --shape, such as --shape 3 224 224{advice}"
        )
    return batch, row


def _layout(datatype: int, row: tuple[int, ...], *, pictures: bool) -> Layout | None:
    if datatype not in FLOATS:
        return None
    if len(row) == 3 and row[0] in (1, 3):
        return "channels first"
    if len(row) == 3 and row[2] in (1, 3):
        return "channels last"
    return "grey" if len(row) == 2 and pictures else None


def random_rows(inputs: Sequence[Input], rows: int) -> dict[str, NDArray[Any]]:
    """Return rows for a network's inputs: floats in 0..1, and whole numbers that are 0 or 1."""
    random = np.random.default_rng(0)
    values = {each.name: random.random((rows, *each.shape)) for each in inputs}
    return {
        each.name: (values[each.name] if each.dtype.kind == "f" else values[each.name] < 0.5).astype(
            each.dtype
        )
        for each in inputs
    }


def silent() -> onnxruntime.RunOptions:
    """Return options of a run whose errors onnxruntime raises, but does not log as well."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


class Network:
    """The graph as it was exported, which runs on rows of the graph that is to be served.

    The constructor raises NetworkError if onnxruntime does not open the graph.
    """

    def __init__(self, model: ModelProto, given: Input, normalization: Normalization) -> None:
        self._given = given
        self._normalization = normalization
        try:
            self._session = open_graph(model)
        except Exception as error:  # onnxruntime raises its own types
            raise NetworkError(f"onnxruntime does not open it: {error}") from None
        self.outputs = [each.name for each in self._session.get_outputs()]

    def random_rows(self, count: int) -> NDArray[Any]:
        """Return different rows: pixels of coarse patterns, or, without images, numbers in 0..1."""
        random = np.random.default_rng(0)
        shape = self._given.served_shape
        if self._given.layout is None:
            return random.random((count, *shape)).astype(self._given.dtype)
        coarse = random.integers(0, 256, (count, 4, 4, *shape[2:]), np.uint8)
        return coarse[:, np.arange(shape[0]) * 4 // shape[0]][:, :, np.arange(shape[1]) * 4 // shape[1]]

    def run(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs, each (rows, ...). A fixed batch is filled with copies of one row.

        Raises NetworkError.
        """
        values = rows
        if self._given.layout == "grey":
            values = self._normalization.apply(rows[..., None])[..., 0].astype(self._given.dtype)
        elif self._given.layout is not None:
            values = self._normalization.apply(rows).astype(self._given.dtype)
        if self._given.layout == "channels first":
            values = values.transpose(0, 3, 1, 2)
        try:
            if self._given.batch is None:
                return [np.asarray(each) for each in self._run(values)]
            answers = [self._run(np.repeat(row[None], self._given.batch, axis=0)) for row in values]
            return [
                np.stack([np.atleast_1d(each)[0] for each in made]) for made in zip(*answers, strict=True)
            ]
        except Exception as error:  # onnxruntime raises its own types
            raise NetworkError(f"it does not run with rows of {list(self._given.shape)}: {error}") from None

    def _run(self, values: NDArray[Any]) -> list[Any]:
        made: list[Any] = self._session.run(self.outputs, {self._given.name: values}, silent())
        return made
