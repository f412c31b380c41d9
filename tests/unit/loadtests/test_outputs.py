"""Which run may write to the published files, and that a file is written whole or not at all."""

import shlex
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from loadtests import capacity, dashboard_picture, gpu, open_loop, outputs
from loadtests.machine import RESULTS
from loadtests.outputs import REPORTS, Unfinished, chosen_output, replacing, write_text
from loadtests.peers import __main__ as peers
from loadtests.simulation import check, scaling

PUBLISHED = RESULTS / "something.json"


@pytest.mark.parametrize("module", [peers, open_loop, check, scaling, dashboard_picture])
def test_a_run_with_the_defaults_is_a_full_one(module: ModuleType) -> None:
    assert module.is_full_run(module.command_line().parse_args([]))


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (peers, "--rounds 1"),
        (peers, "--seconds 1"),
        (peers, "--only inkserve"),
        (peers, "--variant 'two=--workers 2'"),
        (open_loop, "--seconds 1"),
        (open_loop, "--images 1"),
        (open_loop, "--loads 0.5 1"),
        (open_loop, "--model mlp-int8"),
        (open_loop, "--flags=--access-log"),
        (capacity, "measure --seconds 1"),
        (capacity, "measure --model cnn"),
        (check, "--seconds 1"),
        (check, "--calibrate-seconds 1"),
        (scaling, "--rates 10000"),
        (scaling, "--seed 2"),
        (dashboard_picture, "--seconds 30"),
        (dashboard_picture, "--stages soak"),
    ],
)
def test_a_shorter_or_other_run_is_no_full_one(module: ModuleType, arguments: str) -> None:
    parsed = module.command_line().parse_args(shlex.split(arguments))
    assert not module.is_full_run(parsed)


def test_a_full_measurement_of_a_pod_is_published() -> None:
    assert capacity.is_full_run(capacity.command_line().parse_args(["measure", "--seconds", "20"]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", RESULTS / "gpu.json"),
        ("--provider tensorrt", RESULTS / "gpu_tensorrt.json"),
        ("--only cnn", REPORTS / "gpu.json"),
        ("--seconds 0.1", REPORTS / "gpu.json"),
        ("--no-cuda-graphs", REPORTS / "gpu.json"),
        ("--no-cuda-graphs --publish", RESULTS / "gpu.json"),
        ("--out somewhere.json", Path("somewhere.json")),
    ],
)
def test_the_check_of_a_gpu_publishes_full_runs(arguments: str, expected: Path) -> None:
    assert gpu.output_of(gpu.parse(arguments.split())) == expected


@pytest.mark.parametrize(
    ("output", "publish", "full", "expected"),
    [
        (None, False, True, PUBLISHED),
        (None, False, False, REPORTS / "something.json"),
        (None, True, False, PUBLISHED),
        (Path("mine.json"), True, True, Path("mine.json")),
    ],
)
def test_a_quick_run_writes_to_reports(
    output: Path | None, publish: bool, full: bool, expected: Path
) -> None:
    assert chosen_output(Namespace(output=output, publish=publish), PUBLISHED, full=full) == expected


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "result.json"
    write_text(file, "first")
    with replacing(file) as part:
        part.write_text("second")
        assert file.read_text() == "first"
    assert file.read_text() == "second"
    assert list(file.parent.iterdir()) == [file]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_text(file, "first")

    def write_half() -> None:
        with replacing(file) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_measured_before_ctrl_c_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "REPORTS", tmp_path)

    def measure() -> None:
        unfinished = Unfinished("peers")
        with unfinished.kept():
            unfinished.write({".json": "{}", ".md": "# so far"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"peers-unfinished\.md has what was measured"):
        measure()
    assert (tmp_path / "peers-unfinished.md").read_text() == "# so far"


def test_a_finished_run_leaves_nothing_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "REPORTS", tmp_path)
    unfinished = Unfinished("peers")
    with unfinished.kept():
        unfinished.write({".json": "{}", ".md": "# so far"})
    assert not list(tmp_path.iterdir())
