"""ONNX files: written without a trace of the machine, run on the CPU. Knows nothing of torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

# Rows per call of a session, which bounds its memory.
PART_ROWS = 256


def strip(graph: onnx.ModelProto) -> None:
    """Remove what the exporter records of its machine: source lines, stack traces, module paths."""
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.metadata_props[:], graph.graph.metadata_props[:], graph.graph.value_info[:]
    parts = [*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def without(graph: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """Return the graph without the nodes, weights and outputs whose names begin with the prefix."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for parts in (copy.graph.node, copy.graph.initializer, copy.graph.output):
        kept = [each for each in parts if not each.name.startswith(prefix)]
        del parts[:]
        parts.extend(kept)
    return copy


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph to a file; the same graph always gives the same bytes."""
    path.write_bytes(graph.SerializeToString(deterministic=True))


def open_session(
    source: Path | onnx.ModelProto, extra_outputs: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU; extra_outputs names inner tensors to return as well.

    source: a file, or a graph, which stays as it is.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(onnx.load(source) if isinstance(source, Path) else source)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs)
    return open_graph(graph)


def open_part(
    graph: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]
) -> onnxruntime.InferenceSession:
    """A session of the nodes between these tensors of a graph, which may be inner ones."""
    whole = onnx.shape_inference.infer_shapes(graph)
    return open_graph(onnx.utils.Extractor(whole).extract_model([*inputs], [*outputs]))


def open_graph(graph: onnx.ModelProto, threads: int = 0) -> onnxruntime.InferenceSession:
    """An onnxruntime session of a graph on the CPU. threads: 0 for as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_in_parts(
    session: onnxruntime.InferenceSession, output_names: Sequence[str], inputs: Arrays, rows: int = PART_ROWS
) -> list[NDArray[Any]]:
    """Run a session over inputs of any number of rows, `rows` at a time."""
    count = len(next(iter(inputs.values())))
    parts = [
        session.run(list(output_names), {name: array[i : i + rows] for name, array in inputs.items()})
        for i in range(0, count, rows)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
