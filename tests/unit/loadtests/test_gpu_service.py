"""The report of the service's loads on a GPU: figures are made up, the code that judges them is not."""

import json
import shutil
from pathlib import Path

import pytest

from loadtests import gpu_service
from loadtests.gpu_service import Bench, Figure, Missing, main, parse, raw, report, targets
from loadtests.machine import ROOT
from loadtests.peers import contestants


def figure(form: str, load: str, images: float) -> Figure:
    return Figure(form, load, images, images, 1.0, 2.0, 0, 27.0)


def figures(eight: float) -> list[Figure]:
    return [
        figure("one process", raw("mlp", 1, 512).name, 25_000),
        figure("one process, --max-batch-size 1024", raw("mlp", 1024, 16).name, 3_000_000),
        figure("--workers 8", raw("mlp", 1, 512).name, eight),
        figure("--workers 8", raw("mlp", 16, 256).name, 1_500_000),
    ]


@pytest.mark.parametrize(("eight", "met"), [(150_000.0, True), (149_999.0, False)])
def test_targets_are_met_from_their_bound_on(eight: float, met: bool) -> None:
    reached = {target.what: target for target in targets(figures(eight), 3_600_000)}
    ratio, rate = (reached[f"single images{of}"] for of in (", 8 workers to one process", "/s, 8 workers"))
    assert ratio.value == pytest.approx(eight / 25_000)
    assert (rate.value, rate.bound) == (eight, 150_000)
    assert reached["bodies of 1,024 to onnxruntime alone"].value == pytest.approx(3 / 3.6)
    assert reached["images/s in bodies of 256, 8 workers"].value is None
    missing = [Missing("pytriton", "no index | no network")]
    text = report(figures(eight), missing, 3_600_000, [*reached.values()])
    assert "| pytriton | not measured: no index / no network | | | | | |" in text.splitlines()
    line = f"| single images/s, 8 workers | {eight:,.2f} | 150,000 | {'met' if met else 'missed'} |"
    assert line in text.splitlines()
    assert "bodies of 256" not in text.partition("| target")[2]
    assert "| bodies of 1,024 to onnxruntime alone | 0.83 | 0.85 | missed |" in text


def rows_of_peers(*flags: str) -> list[Figure | Missing]:
    return list(Bench(parse(["--provider", "cpu", "--seconds", "1", *flags])).peers())


def test_every_peer_left_out_has_a_row() -> None:
    reason = "left out by --peers"
    assert rows_of_peers("--peers") == [Missing("a batcher by hand", reason), Missing("pytriton", reason)]


def test_peer_that_cannot_be_installed_has_a_row_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_folder = tmp_path / "file"
    no_folder.touch()
    monkeypatch.setattr(contestants, "VENVS", no_folder)
    row = rows_of_peers("--peers", "pytriton")[1]
    assert isinstance(row, Missing)
    assert "Not a directory" in row.reason
    assert capsys.readouterr().err == f"pytriton: not measured: {row.reason}\n"


@pytest.mark.parametrize("name", ["missing/python", "false"])
def test_peer_whose_interpreter_does_not_run_has_a_row(tmp_path: Path, name: str) -> None:
    (tmp_path / "false").symlink_to(Path(shutil.which("false") or "/bin/false"))
    row = rows_of_peers("--peers", "pytriton", "--peer-python", str(tmp_path / name))[1]
    assert isinstance(row, Missing)
    assert "missing/python" in row.reason or "exited with code 1" in row.reason


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_every_form_is_loaded_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one load of each form, because the others differ only in their bodies."""
    single = raw("mlp", 1, 8)
    monkeypatch.setattr(gpu_service, "IN_ONE_PROCESS", (single, gpu_service.generated(4, 4)))
    monkeypatch.setattr(gpu_service, "LARGE_BATCHES", (raw("mlp", 16, 4),))
    for name in ("IN_THE_SPLIT_FORM", "OF_PEERS"):
        monkeypatch.setattr(gpu_service, name, (single,))
    models = tmp_path / "models"
    models.mkdir()
    for name in ("mlp", "gan"):  # with all models, each of the services takes seconds to start
        (models / name).symlink_to(ROOT / "models" / name)
    output = tmp_path / "gpu_service.json"
    flags = ["--provider", "cpu", "--workers", "2", "--services", "2", "--seconds", "1"]
    flags += ["--peers", "fastapi_batcher", "--models-dir", str(models)]
    assert main([*flags, "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    forms = [each["form"] for each in content["figures"]]
    expected = ["one process", "one process", "one process, --max-batch-size 1024", "--workers 2"]
    assert forms == [*expected, "2 services", "a batcher by hand"]
    assert all(each["requests_per_second"] > 0 and not each["errors"] for each in content["figures"])
    assert content["missing"] == [{"form": "pytriton", "reason": "left out by --peers"}]
    assert content["engine_images_per_second"] > 0
