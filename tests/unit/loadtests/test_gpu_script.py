"""The check of the engine on a GPU, run on the CPU: everything except CUDA itself."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from loadtests.gpu import Arrays, distance, in_flight_problems, main
from loadtests.machine import ROOT
from tests.support.models import IMAGES, PROBABILITIES, make_model, write_model

Add = Callable[..., Path]


def check(models_dir: Path, out: Path, *options: str) -> int:
    quickly = ["--seconds", "0", "--threads", "1", "--max-batch-size", "20", "--out", str(out)]
    return main(["--provider", "cpu", "--models-dir", str(models_dir), *quickly, *options])


def test_a_model_that_agrees_is_timed(
    add_generator: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_generator()
    out = tmp_path.with_suffix(".json")
    assert check(tmp_path, out) == 0
    result = json.loads(out.read_text())
    assert result["provider"] == "cpu"
    assert result["onnxruntime"] == ort.__version__
    (model,) = result["models"]
    assert (model["model"], model["problems"]) == ("ramp/1", [])
    assert model["equal_sizes"][-3:] == [12, 16, 20]
    assert [timing["rows"] for timing in model["timings"]] == [1, 2, 4, 8, 16, 20]
    assert all(timing["seconds"] > 0 and timing["runs"] >= 5 for timing in model["timings"])
    assert capsys.readouterr().out.count("| ramp/1 |") == 6


def test_mixed_up_batches_in_flight_are_found() -> None:
    class Mixed:
        depth = 2

        def begin(self, parts: Sequence[Arrays], _rows: int) -> Callable[[], Arrays]:
            self.latest = parts[0]
            return lambda: self.latest

    ones, twos = (np.ones(3),), (np.full(3, 2.0),)
    found = list(in_flight_problems(Mixed(), (ones, twos), (ones, twos)))  # type: ignore[arg-type]
    assert len(found) == 9  # every second batch but the last is followed by the other input
    assert found[0] == "with 2 batches in flight, number 1 has other bits than alone"


@pytest.mark.slow
def test_a_shipped_quantized_model_agrees_on_real_digits(tmp_path: Path) -> None:
    assert (
        check(ROOT / "models", tmp_path / "result.json", "--only", "mlp-int8", "--max-batch-size", "4") == 0
    )


def test_an_output_that_ignores_its_input_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Shape", ["images"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "ten"], ["shape"], axis=0),
        helper.make_node("Expand", ["tenth", "shape"], ["probabilities"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([10], np.int64), "ten"),
        numpy_helper.from_array(np.array(0.1, np.float32), "tenth"),
    ]
    write_model(
        tmp_path,
        make_model(nodes, constants, (IMAGES,), (PROBABILITIES,)),
        name="stale",
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
    )
    assert check(tmp_path, tmp_path.with_suffix(".json")) == 1
    assert "stale/1: batch of 4: other inputs give the same outputs" in capsys.readouterr().err


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is available")
def test_a_missing_provider_is_reported(
    add_classifier: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_classifier()
    assert check(tmp_path, tmp_path.with_suffix(".json"), "--provider", "cuda") == 2
    assert "provider cuda needs CUDAExecutionProvider" in capsys.readouterr().err
    assert not tmp_path.with_suffix(".json").exists()


def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_from_being_checked(
    add_classifier: Add, add_generator: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (add_classifier(name="broken") / "model.onnx").write_bytes(b"no graph")
    add_generator()
    assert check(tmp_path, tmp_path.with_suffix(".json")) == 2
    assert "not checked: broken" in capsys.readouterr().err
    (checked,) = json.loads(tmp_path.with_suffix(".json").read_text())["models"]
    assert checked["model"] == "ramp/1"


def test_a_missing_models_folder_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nothing", tmp_path / "result.json") == 2
    assert "nothing is missing" in capsys.readouterr().err


def test_a_difference_counts_grey_levels_or_is_relative_above_one() -> None:
    assert distance(np.array([3, 250], np.uint8), np.array([5, 249], np.uint8)) == 2
    assert distance(np.array([0.5, 102.0]), np.array([0.25, 100.0])) == 0.25
    assert distance(np.array([0.0, 102.0]), np.array([0.0, 100.0])) == 0.02
    assert distance(np.array([np.nan]), np.array([1.0])) == np.inf


def test_the_parts_of_a_wheel_join_to_the_same_file(tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(np.random.default_rng(0).bytes(2_500_000))
    assert main(["--split-wheel", str(wheel), "--into", str(tmp_path / "parts"), "--part-mb", "1"]) == 0
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.stat().st_size for part in parts] == [1_000_000, 1_000_000, 500_000]
    assert b"".join(part.read_bytes() for part in parts) == wheel.read_bytes()
