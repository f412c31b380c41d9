"""The command `tune`, on a tiny VAE: it really trains, in real workers."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest

from tests.support.idx_files import write_folder
from training.__main__ import main

pytestmark = pytest.mark.slow

TINY = {"batch_size": 20, "latent": 5, "embedding": 3, "hidden": 8, "channels_7": 4}
TINY |= {"channels_14": 4, "channels_28": 4}
FIXED = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
FIXED += ["--set", "judge=none"]
# The rest of the flow's space is `coupling`, which then has no effect.
WITH_A_TEACHER = ["--set", "teacher=runs/flow", "--set", "learning_rate=0.001", "--set", "weight_decay=0"]
WITH_A_TEACHER += ["--set", "batch_size=64", "--set", "warm_up=0"]


@pytest.fixture(autouse=True)
def _keep_the_signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def command(data_dir: Path, folder: Path, trials: int, workers: int, epochs: int = 3) -> list[str]:
    arguments = ["tune", "vae", "--data-dir", str(data_dir), "--study-dir", str(folder), "--device", "cpu"]
    arguments += ["--trials", str(trials), "--workers", str(workers), "--epochs", str(epochs)]
    return [*arguments, *FIXED]


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")


def states(folder: Path) -> list[str]:
    return [trial["state"] for trial in json.loads((folder / "study.json").read_text())["trials"]]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def start(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    whole = [sys.executable, "-m", "training", *arguments]
    return subprocess.Popen(
        whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_a_trial(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    assert any(line.startswith("trial ") for line in iter(process.stderr.readline, ""))


@pytest.mark.nightly
def test_two_workers_search_prune_continue_and_the_best_can_be_repeated(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    assert main(command(data_dir, folder, trials=4, workers=2)) == 0
    said = capsys.readouterr()
    assert states(folder) == ["complete"] * 4
    assert "No importance: 4 complete trials" in said.out
    assert said.err.count("trial ") == 4
    assert len({trial.user_attrs["worker"] for trial in study_of(folder).trials}) == 2

    # No trial reaches these, so all but the default are pruned from now on.
    study = study_of(folder)
    for value in (-1.0, -2.0, -3.0, -4.0, -5.0):
        reached = dict.fromkeys(range(1, 4), value)
        changes = [f"{name}={value}" for name, value in study.trials[1].params.items()]
        attributes = {"changes": changes, "best_epoch": {"epoch": 3, "validation_elbo": value}}
        study.add_trial(
            optuna.create_trial(
                value=value,
                params=study.trials[1].params,
                distributions=study.trials[1].distributions,
                intermediate_values=reached,
                user_attrs=attributes,
            )
        )
    assert main(command(data_dir, folder, trials=11, workers=2)) == 0
    said = capsys.readouterr()
    assert f"{folder}: 9 of 11 trials are done" in said.err
    assert said.err.count("pruned after epoch 2 of 3") == 2
    assert states(folder) == ["complete"] * 9 + ["pruned"] * 2
    assert "Importance for being among the best 4 of 9 complete trials (PED-ANOVA):" in said.out
    for picture in ("history.png", "importance.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("trials/*/*.pt"))

    assert main(command(data_dir, folder, trials=12, workers=2, epochs=2)) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        f"error: {folder} holds another study: epochs is 2, was 3: give another --study-dir"
    )


@pytest.mark.nightly
def test_the_printed_command_repeats_the_best_trial(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    assert main(command(data_dir, folder, trials=3, workers=1)) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Repeat trial "))
    number = int(lines[first].split()[2].rstrip(","))
    assert number != 0
    words = shlex.split(lines[first + 1])
    assert words[:4] == ["python", "-m", "training", "train"]
    monkeypatch.chdir(tmp_path)
    assert main(words[3:]) == 0
    assert metrics(tmp_path / "runs" / "vae-tuned-short") == metrics(folder / "trials" / f"{number:04d}")
    assert "--epochs" in words
    assert "--epochs" not in shlex.split(lines[first + 3])


@pytest.mark.nightly
def test_a_killed_worker_loses_only_its_trial(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    with start(command(data_dir, folder, trials=6, workers=1, epochs=20)) as process:
        wait_for_a_trial(process)
        worker = study_of(folder).trials[0].user_attrs["worker"]
        os.kill(worker, signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 2
    assert f"worker {worker} was killed by SIGKILL; its trial is lost" in said
    assert said.splitlines()[-1].endswith("because workers ended early: run the command again for the others")
    done = states(folder).count("complete") + states(folder).count("pruned")
    assert 1 <= done < 6
    assert main(command(data_dir, folder, trials=6, workers=2, epochs=20)) == 0
    assert f"{done} of 6 trials are done" in capsys.readouterr().err
    assert states(folder).count("complete") + states(folder).count("pruned") == 6
    assert states(folder).count("fail") <= 1


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly)]
)
def test_an_interrupted_command_keeps_its_finished_trials(
    how: signal.Signals, status: int, tmp_path: Path, data_dir: Path
) -> None:
    folder = tmp_path / "study"
    with start(command(data_dir, folder, trials=50, workers=1, epochs=20)) as process:
        wait_for_a_trial(process)
        workers = {trial.user_attrs.get("worker", 0) for trial in study_of(folder).trials} - {0}
        # A terminal sends Ctrl-C to the whole group, an orchestrator ends the command's process.
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        _, said = process.communicate(timeout=200)
    assert process.returncode == status
    unexpected = [line for line in said.splitlines() if not line.startswith("trial ")]
    assert unexpected == (["interrupted"] if how == signal.SIGINT else [])
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert study_of(folder).trials[0].state == optuna.trial.TrialState.COMPLETE


def test_what_stops_a_worker_is_one_line(
    tmp_path: Path, data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "trials").write_text("")
    assert main(command(data_dir, folder, trials=2, workers=2)) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    # Both workers fail; either may be the first.
    trials = [folder / "trials" / name for name in ("0000", "0001")]
    assert said in [[f"error: [Errno 20] Not a directory: '{trial}'"] for trial in trials]


def test_a_batch_that_does_not_fit_the_data_is_one_line(
    tmp_path: Path, data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = command(data_dir, tmp_path / "study", trials=2, workers=1)
    assert main([*arguments, "--set", "batch_size=512"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == "error: batch size 512 does not fit 220 rows on 1 processes"


def test_a_diverging_trial_is_pruned_and_named(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(data_dir, tmp_path / "study", trials=2, workers=1)
    assert main([*arguments, "--set", "learning_rate=1e30"]) == 0
    said = capsys.readouterr()
    assert said.err.count("diverged: the loss is not finite") == 2
    assert said.out == "vae: no complete trial, 2 pruned\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnn"], "'rnn' is no model with a search space, expected one of cnn, flow, gan, mlp, vae, vit"),
        (["judge"], "'judge' is no model with a search space, expected one of cnn, flow, gan, mlp, vae, vit"),
        (["vae", "--set", "depth=3"], "vae has no hyperparameter 'depth'"),
        (
            ["vae", "--set", "learning_rate=1e-3", "--set", "warm_up=0.1", *FIXED],
            "--set leaves nothing to search",
        ),
        (["flow", *WITH_A_TEACHER], "--set leaves nothing to search"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments, "--study-dir", str(tmp_path / "study")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "study").exists()


def test_a_missing_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "training.tuning.tune", None)
    assert main(["tune", "vae", "--study-dir", str(tmp_path / "study")]) == 2
    assert "tuning needs the extra `tuning`: " in capsys.readouterr().err
