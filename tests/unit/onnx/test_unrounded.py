"""What graphs compute before they round, as further outputs of a real session."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from service.models.manifest import MODEL_FILE
from service.onnx.session import EngineOptions, open_session
from service.onnx.unrounded import unrounded_tensors, with_outputs
from tests.support.models import LATENT, ramp_generator

OPTIONS = EngineOptions("cpu", 0, 1, (1,))


def test_images_are_told_before_they_are_rounded(add_generator: Callable[..., Path]) -> None:
    graph = add_generator() / MODEL_FILE
    assert unrounded_tensors(graph) == ["sum"]
    inputs = {"z": np.full((2, LATENT), 0.3, np.float32), "label": np.array([3, 4])}
    rounded, floats = open_session(graph, OPTIONS, ["sum"]).run(["images", "sum"], inputs)
    assert floats.dtype == np.float32
    assert not np.array_equal(floats, floats.round())
    assert np.array_equal(floats.clip(0, 255).astype(np.uint8).reshape(-1, 28, 28), rounded)


def test_outputs_that_are_not_rounded_need_no_others(add_classifier: Callable[..., Path]) -> None:
    assert unrounded_tensors(add_classifier() / MODEL_FILE) == []


def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    path = tmp_path / MODEL_FILE
    onnx.save(ramp_generator(), path, save_as_external_data=True, location="weights", size_threshold=1024)
    inputs = {"z": np.ones((1, LATENT), np.float32), "label": np.array([0])}
    (floats,) = open_session(path, OPTIONS, ["sum"]).run(["sum"], inputs)
    assert floats.shape == (1, 784)


def test_a_graph_with_more_outputs_is_still_one(add_generator: Callable[..., Path]) -> None:
    names = ["sum", "x" * 200]  # a length of two bytes
    graph = onnx.load_from_string(with_outputs((add_generator() / MODEL_FILE).read_bytes(), names))
    assert [output.name for output in graph.graph.output] == ["images", *names]
