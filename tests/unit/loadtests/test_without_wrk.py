"""What the commands that load with wrk do where it is not installed."""

from collections.abc import Callable

import pytest

from loadtests import fast_path, generation, gpu_service, split_cost
from loadtests.peers import __main__ as peers

COMMANDS = [module.main for module in (fast_path, generation, gpu_service, peers, split_cost)]


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_without_wrk_nothing_is_measured(
    main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([]) == 1
    assert "wrk is missing; on Debian: apt-get install wrk" in capsys.readouterr().err
