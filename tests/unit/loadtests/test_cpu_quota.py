"""CPU quotas, in folders that look like both versions of cgroups."""

from pathlib import Path

import pytest

from loadtests.cpu_quota import PERIOD_US, NoQuotas, quotas


def test_the_first_version_gets_quota_period_and_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    monkeypatch.setattr(Path, "rmdir", lambda _: None)  # the kernel's folders are empty to it
    with quotas({41: 0.3, 42: 0.1}, tmp_path):
        (parent,) = [path for path in (tmp_path / "cpu").iterdir() if path.is_dir()]
        files = {path.relative_to(parent).as_posix(): path.read_text() for path in parent.glob("*/*")}
    assert files == {
        "41/cpu.cfs_period_us": str(PERIOD_US),
        "41/cpu.cfs_quota_us": "3000",
        "41/cgroup.procs": "41",
        "42/cpu.cfs_period_us": str(PERIOD_US),
        "42/cpu.cfs_quota_us": "1000",
        "42/cgroup.procs": "42",
    }
    assert (tmp_path / "cpu" / "cgroup.procs").read_text() in (
        "41",
        "42",
    )  # both went back, one after the other


def test_the_second_version_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rmdir", lambda _: None)
    with quotas({41: 0.25}, tmp_path):
        (parent,) = [path for path in tmp_path.iterdir() if path.is_dir()]
        assert (parent / "cgroup.subtree_control").read_text() == "+cpu"
        assert (parent / "41" / "cpu.max").read_text() == f"2500 {PERIOD_US}"


def test_a_machine_without_cgroups_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoQuotas, match="takes no CPU quota"), quotas({41: 0.5}, tmp_path / "missing"):
        pass
