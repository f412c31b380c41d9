"""ONNX files: written without a trace of the machine, run on the CPU. Knows nothing of torch."""

from collections.abc import Collection, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from training.errors import ConfidenceError

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


def without_output(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the graph without an output, and without the nodes and weights that no other output needs.

    If there is no such output, the graph loses only the nodes and weights that no output needs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    made = copy.graph
    replace_parts(made.output, [each for each in made.output if each.name != name])
    outputs = {each.name for each in made.output}
    nodes = nodes_for(made, outputs)
    needed = outputs.union(*map(names_read, nodes))
    replace_parts(made.node, nodes)
    replace_parts(made.initializer, [each for each in made.initializer if each.name in needed])
    return copy


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor, by the tensor's name."""
    return {name: node for node in graph.node for name in node.output}


def nodes_for(graph: onnx.GraphProto, outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes that these tensors need, in the graph's order."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed |= names_read(node)
    return nodes[::-1]


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names of the tensors that a node or its subgraphs read."""
    graphs = [graph for each in node.attribute for graph in (each.g, *each.graphs)]
    inner = (name for graph in graphs for each in graph.node for name in names_read(each))
    return {*node.input, *inner} - {""}  # an input that is left out has no name


def constant_node(name: str, value: NDArray[Any]) -> onnx.NodeProto:
    """Return a node that makes a tensor of this name and value."""
    return onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))


def check_names(graph: onnx.ModelProto, added: Collection[str]) -> None:
    """Raise ConfidenceError if a node or tensor of the graph has one of these names."""
    made = graph.graph
    named = [*made.node, *made.initializer, *made.input, *made.output]
    names = {each.name for each in named} | {
        name for node in made.node for name in (*node.input, *node.output)
    }
    taken = sorted(names.intersection(added))
    if taken:
        raise ConfidenceError(f"the graph has {', '.join(taken)} of its own, expected other names")


def replace_parts(parts: MutableSequence[Any], others: Sequence[Any]) -> None:
    """Replace a repeated field of a graph, such as its nodes."""
    del parts[:]
    parts.extend(others)


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
