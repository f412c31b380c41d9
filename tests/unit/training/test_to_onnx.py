from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import Tensor, nn

from service.models.manifest import MODEL_FILE, TensorSpec
from tests.support.idx_files import write_folder
from tests.support.tiny_classifiers import LinearClassifier
from training.datasets.splits import Splits, load
from training.errors import ExportError
from training.export.to_onnx import to_onnx
from training.onnx_files import open_session, run_in_parts

pytestmark = pytest.mark.slow

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
PROBABILITIES = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load(write_folder(tmp_path_factory.mktemp("data"), test=300))


def test_graph_with_another_signature_is_refused() -> None:
    wrong = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 11))
    with pytest.raises(ExportError, match=r"the graph has .*10.* expected .*11"):
        to_onnx(LinearClassifier(), [IMAGES], [wrong], ["logits"])


def test_graph_is_reproducible_and_free_of_machine_paths() -> None:
    first, second = (
        to_onnx(LinearClassifier(), [IMAGES], [PROBABILITIES], ["logits"]).SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second
    for trace in (str(Path.cwd()), "site-packages", "/home", "/tmp", ".py", "File "):
        assert trace.encode() not in first


def test_every_weight_keeps_its_name() -> None:
    """That of a group normalisation too, which the exporter reshapes."""

    class Normalised(LinearClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(2, 4)
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            normal = self.norm(images.float().view(-1, 4, 14, 14))
            return super().forward(normal.view(-1, 28, 28))

    network = Normalised()
    graph = to_onnx(network, [IMAGES], [PROBABILITIES], ["logits"]).graph
    stored = {each.name: numpy_helper.to_array(each).reshape(-1) for each in graph.initializer}
    assert {name for name, _ in network.named_parameters()} <= stored.keys()
    for name, weights in network.named_parameters():
        np.testing.assert_array_equal(stored[name], weights.detach().numpy().reshape(-1))


def test_batch_axis_is_free(tmp_path: Path, splits: Splits) -> None:
    graph = to_onnx(LinearClassifier(), [IMAGES], [PROBABILITIES], ["logits"])
    assert [output.name for output in graph.graph.output] == ["probabilities"]
    onnx.save(graph, tmp_path / MODEL_FILE)
    session = open_session(tmp_path / MODEL_FILE, ["logits"])
    for rows in (1, 3, 257):
        images = splits.test.images[:rows]
        probabilities, logits = session.run(None, {"images": images})
        assert (probabilities.shape, logits.shape) == ((rows, 10), (rows, 10))
        (parts,) = run_in_parts(session, ["logits"], {"images": images}, rows=2)
        np.testing.assert_allclose(parts, logits, atol=1e-5)  # float32 sums of 784 terms in another order
