"""The files that a graph reads: found wherever the format allows a tensor, and nothing else is believed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.errors import RepositoryError
from service.models.graph_files import external_files
from service.models.manifest import MODEL_FILE

PLACES = ("initializer", "attribute", "list", "subgraph", "sparse", "function")


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def place(model: onnx.ModelProto, where: str, tensor: TensorProto) -> None:
    graph = model.graph
    if where == "initializer":
        graph.initializer.append(tensor)
    elif where == "attribute":
        graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif where == "list":
        graph.node.append(helper.make_node("Odd", [], ["c"], values=[tensor]))
    elif where == "subgraph":
        inner = helper.make_graph([], "inner", [], [], [tensor])
        graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=inner))
    elif where == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        model.functions.append(helper.make_function("d", "f", [], ["c"], [node], []))


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.text(min_size=1, max_size=12)), max_size=6))
def test_every_external_file_is_found(
    tmp_path_factory: pytest.TempPathFactory, placed: list[tuple[str, str]]
) -> None:
    placed = [(where, name) for where, name in placed if name.isprintable()]
    inside = numpy_helper.from_array(np.arange(300, dtype=np.float32), "inside")
    inside.external_data.add(key="location", value="stale")  # not read: the data is in the graph
    model = helper.make_model(helper.make_graph([], "g", [], [], [inside]))
    for where, name in placed:
        place(model, where, external(name))
    path = tmp_path_factory.mktemp("graph") / MODEL_FILE
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {name for _, name in placed}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_graph_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / MODEL_FILE
    path.write_bytes(data)
    try:
        external_files(path)
    except RepositoryError as error:
        assert "is not an ONNX graph" in str(error)  # noqa: PT017, either is right


def test_a_graph_that_is_cut_short_is_no_graph(tmp_path: Path) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], [], [external("x")]))
    data = model.SerializeToString()
    (tmp_path / MODEL_FILE).write_bytes(data[:-1])
    with pytest.raises(RepositoryError, match="is not an ONNX graph: it is cut short"):
        external_files(tmp_path / MODEL_FILE)
