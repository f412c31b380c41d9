"""Settings from flags and environment variables, and the cores of a container."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

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
        (
            ["--max-device-memory-bytes", "1073741824"],
            r"^max_device_memory_bytes is 1073741824, but provider is cpu: expected provider cuda",
        ),
        (
            ["--provider", "tensorrt", "--max-device-memory-bytes", "1073741824"],
            r"^max_device_memory_bytes is 1073741824, but provider is tensorrt: expected provider cuda",
        ),
        (
            ["--provider", "cuda", "--max-device-memory-bytes", "1024"],
            r"max_device_memory_bytes: .*greater than or equal to 1048576",
        ),
        (["--prefer", "int8,int4"], r"^prefer: .*\(int8\|fp16\).* \(seen: 'int8,int4'\)$"),
        (["--tf32"], "^tf32 is true, but provider is cpu: expected provider cuda$"),
        (
            ["--provider", "tensorrt", "--tf32"],
            "expected provider cuda, because TensorRT uses TF32 without it$",
        ),
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


V2 = "30 1 0:30 {group} /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
V1 = "31 1 0:31 {group} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores"),
    [
        ("0::/\n", V2.format(group="/"), {"cpu.max": "max 100000"}, 4),
        ("0::/\n", V2.format(group="/"), {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", V2.format(group="/"), {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", V2.format(group="/"), {"cpu.max": "900000 100000"}, 4),
        # the tightest of a group and its ancestors
        ("0::/a/b\n", V2.format(group="/"), {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", V2.format(group="/"), {"a/cpu.max": "300000 1000", "a/b/cpu.max": "100000 50000"}, 2),
        # a container that sees only its own group, under the host's path
        ("0::/pod/c\n", V2.format(group="/pod/c"), {"cpu.max": "300000 100000"}, 3),
        ("0::/pod/c\n", V2.format(group="/other"), {"cpu.max": "300000 100000"}, 3),
        # v1, and v1 beside an empty v2
        (
            "4:cpu,cpuacct:/\n",
            V1.format(group="/"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "4:cpu,cpuacct:/\n0::/\n",
            V1.format(group="/") + V2.format(group="/"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "4:cpu,cpuacct:/a/b\n",
            V1.format(group="/"),
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            1,
        ),
        # nothing can be read, or it is not understood
        ("", "", {}, 4),
        ("rubbish\n0\n", "rubbish\n - \n", {"cpu.max": "many"}, 4),
        ("", "", {"cpu.max": "200000 100000"}, 2),
    ],
)
def test_the_tightest_cpu_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    groups: str,
    mounts: str,
    files: dict[str, str],
    cores: int,
) -> None:
    contents = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **contents}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert available_cores(tmp_path) == cores


LINK_PREFIXES = st.from_regex(r"INKSERVE(_[A-Z0-9]{1,8}){0,2}", fullmatch=True)
ADDRESSES = st.ip_addresses().map(str)


@examples(max_examples=12)  # the parser of the flags takes most of the time
@given(LINK_PREFIXES, ADDRESSES, st.integers(1, 65535), st.sampled_from(["TCP", "UDP", "SCTP"]))
def test_the_links_of_any_service_are_no_settings(
    prefix: str, address: str, port: int, protocol: str
) -> None:
    host = f"[{address}]" if ":" in address else address
    url = f"{protocol.lower()}://{host}:{port}"
    links = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_SERVICE_PORT_HTTP": str(port),
        f"{prefix}_PORT": url,
        f"{prefix}_PORT_{port}_{protocol}": url,
        f"{prefix}_PORT_{port}_{protocol}_PROTO": protocol.lower(),
        f"{prefix}_PORT_{port}_{protocol}_PORT": str(port),
        f"{prefix}_PORT_{port}_{protocol}_ADDR": address,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in links.items():
            patch.setenv(name, value)
        assert load_settings([]).port == 8000
        assert load_settings(["--port", "9002"]).port == 9002
        assert Settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("INKSERVE_SERVICE_HOST", "localhost", "INKSERVE_SERVICE_HOST is not a setting"),
        ("INKSERVE_SERVER_PORT", "8000", "INKSERVE_SERVER_PORT is not a setting"),
        ("INKSERVE_X_PORT", "8000", "INKSERVE_X_PORT is not a setting"),
        ("INKSERVE_PORT", "eight", "port: .*valid integer"),
        ("INKSERVE_PORT", "http://10.0.0.1:80", "port: .*valid integer"),
        ("INKSERVE_MODELS_PORT_80", "tcp://10.0.0.1:80", "INKSERVE_MODELS_PORT_80 is not a setting"),
    ],
)
def test_a_mistyped_setting_is_no_service_link(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        load_settings([])


def test_the_agent_port_is_another_than_the_services() -> None:
    assert load_settings([]).agent_port is None
    assert load_settings(["--port", "0", "--agent-port", "0"]).agent_port == 0
    with pytest.raises(SettingsError, match="agent_port is 8000, expected another one than port"):
        load_settings(["--agent-port", "8000"])
