"""Ctrl-C on a command of loadtests."""

import pytest

from loadtests.interrupts import INTERRUPTED, exit_code


def test_a_command_keeps_its_own_exit_code() -> None:
    assert exit_code(lambda: 3) == 3


def test_ctrl_c_prints_one_line_and_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_code(interrupted) == INTERRUPTED == 130
    assert capsys.readouterr().err.strip() == "loadtests: interrupted"
