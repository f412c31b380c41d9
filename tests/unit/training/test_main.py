import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from tests.support.idx_files import write_folder
from tests.support.tiny_runs import Workshop
from training.__main__ import MODELS, family_of, main
from training.hyperparameters import IDLE, idle


@pytest.fixture(autouse=True)
def _keep_the_signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_hyperparameters_can_be_set_and_are_recorded(tmp_path: Path, workshop: Workshop) -> None:
    run_dir = tmp_path / "run"
    arguments = ["train", "gan", "--data-dir", str(workshop.data_dir), "--run-dir", str(run_dir)]
    settings = {"batch_size": "55", "hidden": "8", "channels_7": "4", "learning_rate": "0.001"}
    settings["judge"] = "none"
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    assert main([*arguments, "--epochs", "1", "--threads", "1", "--seed", "5", "--device", "cpu"]) == 0
    recorded = json.loads((run_dir / "config.json").read_text())["hyperparameters"]
    assert (recorded["batch_size"], recorded["hidden"], recorded["learning_rate"]) == (55, 8, 0.001)
    assert (recorded["model"], recorded["epochs"], recorded["seed"]) == ("gan", 1, 5)
    assert recorded["data_digest"] == workshop.splits.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("depth=3", "vae has no hyperparameter 'depth', expected one of epochs, batch_size, latent"),
        ("latent=many", "'many' is not of type int"),
        ("batch_size=0", "expected 1 or more"),
        ("flow_layers=-1", "expected 0 or more"),
        ("ema_decay=2", "expected 0 or more, and less than 1"),
        ("learning_rate=0", "expected more than 0"),
        ("learning_rate=nan", "expected more than 0"),
        ("precision=foo", "expected one of 32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_wrong_hyperparameter_is_named(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "vae", "--run-dir", str(tmp_path / "run"), "--set", change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", MODELS)
def test_no_rate_of_a_model_can_be_zero(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [each.name for each in dataclasses.fields(family_of(model, [])[1]) if each.name.endswith("_rate")]
    assert rates
    for rate in rates:
        assert main(["train", model, "--run-dir", str(tmp_path / "run"), "--set", f"{rate}=0"]) == 2
        assert f"--set {rate}=0: expected more than 0" in capsys.readouterr().err


@pytest.mark.parametrize("model", MODELS)
def test_a_hyperparameter_without_an_effect_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = family_of(model, [])
    for name, reason in idle(config).items():
        change = f"{name}={getattr(config, name) or 0.5}"
        assert main(["train", model, "--run-dir", str(tmp_path / "run"), "--set", change]) == 2
        assert f"--set {change} has no effect: {reason}" in capsys.readouterr().err
        for other in IDLE[name].keys() & vars(config).keys():
            value = getattr(config, other)
            given = {"none": "runs/other", 0: "1"}.get(value, "none" if isinstance(value, str) else "0.5")
            family_of(model, [change, f"{other}={given}"])


def test_missing_data_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")


def test_second_export_gets_the_next_version(
    tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(workshop.models / "judge", models / "judge")
    arguments = ["export", "gan", "--data-dir", str(workshop.data_dir), "--models-dir", str(models)]
    arguments += ["--run-dir", str(workshop.runs / "gan")]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert sorted(path.name for path in (models / "gan").iterdir()) == ["1", "2"]
    first, second = (onnx.load(models / "gan" / version / "model.onnx") for version in "12")
    assert first.graph.SerializeToString() == second.graph.SerializeToString()
    differing = {each.key for each in first.metadata_props if each not in second.metadata_props}
    assert differing == {"inkserve.version"}
    assert main([*arguments, "--version", "2"]) == 2
    assert "2 exists: give another --version, or --force" in capsys.readouterr().err


def test_a_run_is_exported_only_as_its_own_model(
    tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "export",
        "mlp",
        "--data-dir",
        str(workshop.data_dir),
        "--models-dir",
        str(tmp_path / "models"),
    ]
    assert main([*arguments, "--run-dir", str(workshop.runs / "cnn")]) == 2
    assert "cnn is a run of cnn, expected one of mlp" in capsys.readouterr().err
    other = write_folder(tmp_path / "other", test=30)
    arguments = ["export", "cnn", "--data-dir", str(other), "--models-dir", str(tmp_path / "models")]
    assert main([*arguments, "--run-dir", str(workshop.runs / "cnn")]) == 2
    assert "give the same --data-dir as for the training" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_status_1(
    tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["train", "cnn", "--data-dir", str(workshop.data_dir), "--device", "cpu"]
    assert main([*arguments, "--run-dir", str(tmp_path / "file" / "run")]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"error: [Errno 20] Not a directory: '{tmp_path / 'file' / 'run'}'"


@pytest.mark.parametrize("model", ["gan", "vae", "flow"])
def test_generator_without_a_judge_is_not_exported(
    model: str, tmp_path: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", model, "--data-dir", str(workshop.data_dir), "--models-dir", str(tmp_path)]
    assert main([*arguments, "--run-dir", str(workshop.runs / model)]) == 2
    assert "python -m training export judge" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_exits_with_1_for_a_false_manifest(tmp_path: Path, workshop: Workshop) -> None:
    models = Path(shutil.copytree(workshop.models, tmp_path / "models"))
    arguments = ["evaluate", "vae-encoder", "--data-dir", str(workshop.data_dir), "--models-dir", str(models)]
    assert main(arguments) == 0
    manifest = models / "vae-encoder" / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["metrics"]["test_kl"] += 1
    manifest.write_text(json.dumps(content))
    assert main(arguments) == 1
