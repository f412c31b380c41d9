import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from training.families.layers import one_cycle


@given(steps=st.integers(2, 40), warm_up=st.floats(0, 0.99))
@example(steps=10, warm_up=0.1)
def test_the_rate_rises_and_then_falls_to_zero(steps: int, warm_up: float) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    schedule = one_cycle(optimizer, 0.5, steps, warm_up)
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    peak = rates.index(max(rates))
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert rates[peak] <= 0.5
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    if 2 <= warm_up * steps <= steps - 1:
        assert peak == pytest.approx(warm_up * steps - 1, abs=1)
