"""What the log says of a float16 model on a CPU."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.models import IMAGES, PROBABILITIES, template_classifier, write_model


def add(models_dir: Path, name: str, *, half: bool) -> None:
    """The classifier of the ten shipped digits. half: with float16 templates, which are cast when it runs."""
    graph = template_classifier()
    if half:
        (templates,) = graph.graph.initializer
        values = numpy_helper.to_array(templates).astype(np.float16)
        templates.CopyFrom(numpy_helper.from_array(values, "halves"))
        cast = onnx.helper.make_node("Cast", ["halves"], ["templates"], to=onnx.TensorProto.FLOAT)
        graph.graph.node.insert(0, cast)
    outputs = (PROBABILITIES,)
    write_model(models_dir, graph, name=name, task="classification", inputs=(IMAGES,), outputs=outputs)


async def advice_of(models_dir: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    predictor = LocalPredictor(Settings(models_dir=models_dir, max_batch_size=8), Metrics())
    with caplog.at_level(logging.INFO, "service.serving.loaded_model"):
        await predictor.start()
        assert await predictor.reload() == []
    await predictor.close()
    return [each.getMessage() for each in caplog.records if each.name == "service.serving.loaded_model"]


async def test_the_log_says_once_of_a_float16_model_that_it_is_for_gpus(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "cnn", half=False)
    add(tmp_path, "cnn-fp16", half=True)
    add(tmp_path, "own", half=True)
    named, own = await advice_of(tmp_path, caplog)
    assert named.startswith("cnn-fp16 version 1 is in float16, which is for GPUs: ")
    assert named.endswith("; serve cnn")
    assert own.startswith("own version 1 is in float16, which is for GPUs: ")
    assert own.endswith("; serve its float32 version")
