"""The command `private`, on a tiny data set: it really trains and attacks."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from tests.support.idx_files import write_folder
from training.__main__ import main
from training.privacy.guarantee import read_guarantee

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def test_the_study_trains_attacks_and_goes_on_where_it_stopped(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    arguments = ["private", "--data-dir", str(data_dir), "--study-dir", str(folder), "--device", "cpu"]
    arguments += ["--epochs", "2", "--pool", "220", "--models", "4", "--attacked-epochs", "2"]
    arguments += ["--attacked-batch-size", "20", "--set", "batch_size=40", "--set", "accountant=rdp"]
    arguments += ["--set", "delta=1e-3", "--threads", "1", "--epsilon", "8"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err.count("is trained") == 8
    assert said.out == (folder / "report.md").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert [level["epsilon"] for level in report["levels"]] == [None, 8.0]
    assert report["levels"][1]["runs"][0]["guarantee"] == dataclasses.asdict(
        read_guarantee(folder / "runs" / "epsilon-8-seed-0")
    )
    for picture in ("accuracy.png", "attacks.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")

    (folder / "attack" / "epsilon-8" / "03.npy").unlink()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("is trained") == 1
    assert main([*arguments, "--set", "clip_norm=2"]) == 2
    assert "holds another study: clip_norm is 2.0, was 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "5"], "5 attacked models, expected an even number of at least 4"),
        (["--pool", "500"], "a pool of 500 images does not fit 220 training images"),
        (["--pool", "99"], "a pool of 99 images, expected an even number"),
        (["--pool", "100", "--attacked-batch-size", "60"], "batch size 60 does not fit models"),
        (["--pool", "100", "--attacked-batch-size", "20"], "delta is 0.02, expected less than 1 / 50"),
    ],
)
def test_an_impossible_study_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["private", "--data-dir", str(data_dir), "--study-dir", str(tmp_path / "study")]
    assert main([*command, "--set", "delta=0.02", *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "study").exists()


def test_a_missing_extra_is_named(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.delitem(sys.modules, "training.privacy.study", raising=False)
    monkeypatch.delitem(sys.modules, "training.privacy.report", raising=False)
    assert main(["private", "--data-dir", str(data_dir), "--study-dir", str(tmp_path / "study")]) == 2
    assert "private training needs the extra `privacy`: " in capsys.readouterr().err
