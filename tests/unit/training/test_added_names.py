"""`confidence` and `calibrate` tell what they added to a graph from the network's own parts."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.support.idx_files import write_folder
from tests.support.tiny_classifiers import hidden_layer_classifier
from training.confidence.graph import with_score, without_score
from training.confidence.score import fit
from training.datasets.splits import Splits, load
from training.errors import ConfidenceError
from training.onnx_files import names_read, open_session, run_in_parts, without_output
from training.temperature_scaling import temperature_of, with_temperature, without_temperature

OWN = ("channel", "floats", "scaled", "rows", "sums", "features", "logits", "w1", "w2", "b2", "most", "flat")
ADDED = {
    "score": {"ood_norm", "ood_weights"},
    "temperature": {"calibrated_logits", "calibrated_temperature"},
}
NEAR = ("ood_", "ood_features", "ood_own", "ood_score_", "calibrated_", "calibrated_own", "temperature")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load(write_folder(tmp_path_factory.mktemp("data"), train=300))


def renamed(graph: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """The graph with other names of its inner tensors, and its nodes named like what they make."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    for node in made.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = node.output[0]
    for each in made.graph.initializer:
        each.name = names.get(each.name, each.name)
    return made


def with_tiny_score(graph: onnx.ModelProto) -> onnx.ModelProto:
    features = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    return with_score(graph, fit(features, np.arange(50) % 10, 4))


@given(
    own=st.permutations(OWN),
    others=st.lists(
        st.sampled_from([*NEAR, *ADDED["score"], *ADDED["temperature"]]), unique=True, max_size=6
    ),
    steps=st.permutations(["score", "temperature"]),
    count=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_what_was_added_can_be_removed_whatever_the_names_are(
    splits: Splits, own: list[str], others: list[str], steps: list[str], count: int
) -> None:
    graph = renamed(hidden_layer_classifier(splits), dict(zip(own, others, strict=False)))
    add = {"score": with_tiny_score, "temperature": lambda each: with_temperature(each, 3.0)}
    remove = {"score": without_score, "temperature": without_temperature}
    made = graph
    for step in steps[:count]:
        if ADDED[step].intersection(others):
            with pytest.raises(
                ConfidenceError, match=f"the graph has .*({'|'.join(ADDED[step])}).* of its own"
            ):
                add[step](made)
            return
        made = add[step](made)
    assert (temperature_of(made) == 3.0) == ("temperature" in steps[:count])
    for step in steps[:count]:
        made = remove[step](made)
    assert made.graph == graph.graph


def test_what_only_subgraphs_read_is_kept(splits: Splits) -> None:
    """The branches of an `If` read tensors of the graph around them by name."""
    graph = hidden_layer_classifier(splits)
    nodes = graph.graph.node
    nodes.pop()  # the softmax
    branches = {
        name: helper.make_graph(
            [helper.make_node("Softmax", ["logits"], [f"{name}_made"], axis=1)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_made", onnx.TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    nodes.append(helper.make_node("Cast", ["most"], ["condition"], to=onnx.TensorProto.BOOL))
    nodes.append(helper.make_node("If", ["condition"], ["probabilities"], **branches))
    assert names_read(nodes[-1]) >= {"condition", "logits"}
    made = without_output(graph, "no such output")
    assert made.graph == graph.graph
    images = {"images": splits.test.images[:5]}
    assert run_in_parts(open_session(made), ["probabilities"], images)[0].shape == (5, 10)
