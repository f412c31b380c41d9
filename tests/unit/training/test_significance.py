"""McNemar's test, against its definition."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.evaluation.significance import mcnemar


@given(st.integers(0, 9), st.integers(0, 9))
def test_p_is_the_share_of_coin_sequences_that_are_as_uneven(first: int, second: int) -> None:
    correct = np.array([True] * first + [False] * second + [True, False], bool)
    other = np.array([False] * first + [True] * second + [True, False], bool)
    result = mcnemar(correct, other)
    assert (result.only_first, result.only_second) == (first, second)
    count = first + second
    if count <= 10:
        seen = abs(first - second)
        heads = [sum(coins) for coins in product((0, 1), repeat=count)]
        share = sum(abs(2 * each - count) >= seen for each in heads) / len(heads)
        assert result.p_value == pytest.approx(share)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_test_has_no_side(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    one, other = mcnemar(first, second), mcnemar(second, first)
    assert one.p_value == other.p_value
    assert 0 < one.p_value <= 1
    assert mcnemar(first, first).p_value == 1


def test_compare_uses_the_validation_images_unless_told(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(workshop.models / "cnn" / "1")
    command = ["compare", folder, folder, "--data-dir", str(workshop.data_dir)]
    assert main(command) == 0
    assert f"of {len(workshop.splits.validation)}" in capsys.readouterr().out
    assert main([*command, "--on", "test"]) == 0
    seen = capsys.readouterr().out
    assert f"of {len(workshop.splits.test)}" in seen
    assert "p = 1" in seen
