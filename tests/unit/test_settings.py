"""Settings from flags and environment variables, and the cores of a container."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import machine
from service.errors import SettingsError
from service.machine import available_cores
from service.settings import RENAMED, Settings, deprecations, flag, load_settings


def test_a_flag_wins_over_its_variable_and_both_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INKSERVE_PORT", "9001")
    monkeypatch.setenv("INKSERVE_MAX_BATCH_SIZE", "32")
    settings = load_settings(["--port", "9002", "--access-log"])
    assert (settings.port, settings.max_batch_size, settings.host) == (9002, 32, "127.0.0.1")
    assert settings.access_log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], r"port: .*less than or equal to 65535 \(seen: '70000'\)"),
        (["--provider", "gpu"], r"provider: .*'cpu', 'cuda' or 'tensorrt' \(seen: 'gpu'\)"),
        (["--max-batch-size", "many"], r"max_batch_size: .*valid integer.* \(seen: 'many'\)"),
        (["--max-request-rows", "99999"], r"^max_request_rows is 99999, expected at most max_queue_rows"),
    ],
)
def test_a_wrong_value_is_reported_with_the_expected_one(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(arguments)


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INKSERVE_PROT", "9001")
    with pytest.raises(SettingsError, match="environment variable INKSERVE_PROT is not a setting"):
        load_settings([])


OLD_FLAG, OLD_VARIABLE = "--max-queue-delay-seconds", "INKSERVE_MAX_QUEUE_DELAY_SECONDS"
NEW_FLAG, NEW_VARIABLE = "--max-batch-delay-seconds", "INKSERVE_MAX_BATCH_DELAY_SECONDS"


@pytest.mark.parametrize("arguments", [[OLD_FLAG, "0.5"], [f"{OLD_FLAG}=0.5"]])
def test_an_old_flag_sets_the_setting_and_warns(arguments: list[str]) -> None:
    assert load_settings(arguments).max_batch_delay_seconds == 0.5
    assert deprecations(arguments) == [
        f"{OLD_FLAG} is deprecated and will be removed in 0.3.0: use {NEW_FLAG}"
    ]


def test_an_old_variable_sets_the_setting_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OLD_VARIABLE, "0.5")
    assert load_settings([]).max_batch_delay_seconds == 0.5
    assert deprecations([]) == [
        f"{OLD_VARIABLE} is deprecated and will be removed in 0.3.0: use {NEW_VARIABLE}"
    ]


def test_a_new_variable_wins_over_the_old_and_a_flag_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OLD_VARIABLE, "0.5")
    assert load_settings([OLD_FLAG, "2"]).max_batch_delay_seconds == 2
    monkeypatch.setenv(NEW_VARIABLE, "1")
    assert load_settings([]).max_batch_delay_seconds == 1
    assert load_settings([NEW_FLAG, "2"]).max_batch_delay_seconds == 2


def test_a_wrong_value_under_an_old_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OLD_VARIABLE, "11")
    with pytest.raises(SettingsError, match=r"^max_batch_delay_seconds: .* \(seen: '11'\)"):
        load_settings([])


def test_new_names_cause_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NEW_VARIABLE, "1")
    assert deprecations([NEW_FLAG, "2", "--host=" + OLD_FLAG]) == []
    assert RENAMED.keys().isdisjoint(Settings.model_fields)
    assert set(RENAMED.values()) <= Settings.model_fields.keys()


def test_settings_never_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_settings(["--help"])
    assert end.value.code == 0
    shown = without_spaces(capsys.readouterr().out)
    for name, field in Settings.model_fields.items():
        assert field.description
        assert not field.description.endswith(".")  # the default follows
        assert without_spaces(f"{field.description} (default: {field.default})") in shown
        assert flag(name) in shown


def without_spaces(text: str) -> str:
    """Return the text without the line breaks and indents of argparse."""
    return "".join(text.split())


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_a_containers_cpu_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "CGROUP_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert available_cores() == cores
