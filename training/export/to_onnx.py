"""A torch network as an ONNX graph. Knows nothing of files, runs or model families."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from service.models.manifest import TensorSpec
from service.models.tensors import dtype_of
from training.errors import ExportError
from training.onnx_files import strip


def to_onnx(
    network: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], keep: Sequence[str] = ()
) -> onnx.ModelProto:
    """Convert a network to a checked ONNX graph with a free batch axis and no trace of this machine.

    keep: names for the network's further outputs, which become inner tensors of the graph.
    Raises ExportError if the graph's inputs or outputs differ from the given ones.
    """
    graph = _export(network, inputs, [*(spec.name for spec in outputs), *keep])
    del graph.graph.output[len(outputs) :]
    strip(graph)
    _name_weights(graph.graph, network)
    onnx.checker.check_model(graph, full_check=True)
    _check_signature(graph, inputs, outputs)
    return graph


def _export(network: nn.Module, inputs: Sequence[TensorSpec], output_names: list[str]) -> onnx.ModelProto:
    # Two rows: torch.export takes a batch of one for a constant.
    examples = tuple(torch.from_numpy(np.zeros((2, *spec.shape[1:]), dtype_of(spec))) for spec in inputs)
    rows = torch.export.Dim("rows")
    with _quiet_exporter():
        program = torch.onnx.export(
            network.eval(),
            examples,
            input_names=[spec.name for spec in inputs],
            output_names=output_names,
            dynamic_shapes=tuple({0: rows} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    graph: onnx.ModelProto = program.model_proto
    return graph


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence torch 2.13's remarks on itself.

    They say that torchvision is absent, that torch calls something deprecated, and that two inputs
    share one batch axis.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: rows will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _check_signature(
    graph: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Check that the graph's inputs and outputs are those that the manifest will name."""
    values = [*graph.graph.input, *graph.graph.output]
    for spec, value in zip([*inputs, *outputs], values, strict=True):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [-1 if size.dim_param else size.dim_value for size in tensor.shape.dim]
        seen, expected = (value.name, dtype, shape), (spec.name, dtype_of(spec), [*spec.shape])
        if seen != expected:
            raise ExportError(f"the graph has {seen}, expected {expected}")


def _name_weights(graph: onnx.GraphProto, network: nn.Module) -> None:
    """Give back to each weight the name that it has in the network, by which it can be read from the graph.

    The exporter renames weights that it reshapes, such as those of a group normalisation, to val_1 and so
    on. Of several weights with the same values one gets its name.
    """
    stored = {each.name for each in graph.initializer}
    nameless = {
        weights.cpu().numpy().tobytes(): name
        for name, weights in network.state_dict().items()
        if name not in stored and weights.is_floating_point()
    }
    names: dict[str, str] = {}
    for each in graph.initializer:
        if (name := nameless.pop(numpy_helper.to_array(each).tobytes(), None)) is not None:
            names[each.name] = each.name = name
    for node in graph.node:
        node.input[:] = [names.get(read, read) for read in node.input]
