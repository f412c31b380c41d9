import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from training.families.realnvp import LARGEST_LOG_SCALE, Coupling, CouplingFlow

LABELS = torch.tensor([0, 3, 9, 3])


def random_flow(size: int, layers: int = 4) -> CouplingFlow:
    """A flow in float64 that is far from the identity, as a trained one is."""
    torch.manual_seed(0)
    flow = CouplingFlow(size, layers, embedding=3, hidden=8).double()
    for weights in flow.parameters():
        torch.nn.init.normal_(weights, std=0.7)
    return flow.requires_grad_(False)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_inverse_takes_back_what_the_flow_did(size: int) -> None:
    flow, z = random_flow(size), torch.randn(4, size).double()
    w = flow(z, LABELS)
    assert (w - z).abs().max() > 0.1
    # Products of a few float64 numbers of up to e^8.
    torch.testing.assert_close(flow.inverse(w, LABELS)[0], z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_log_determinant_is_that_of_autograds_jacobian(size: int) -> None:
    flow, w = random_flow(size), torch.randn(4, size).double()

    def expected_of(row: int) -> Tensor:
        label = LABELS[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda vector: flow.inverse(vector.unsqueeze(0), label)[0].squeeze(0), w[row]
        )
        log_determinant: Tensor = torch.linalg.slogdet(jacobian).logabsdet
        return log_determinant

    expected = torch.stack([expected_of(row) for row in range(4)])
    assert expected.abs().min() > 0.01
    torch.testing.assert_close(flow.inverse(w, LABELS)[1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_density_of_the_flow_integrates_to_one() -> None:
    flow = random_flow(1, layers=3)
    w = torch.linspace(-100, 100, 400_001).double().unsqueeze(1)
    z, log_determinant = flow.inverse(w, torch.full((len(w),), 7))
    density = (Normal(0.0, 1.0).log_prob(z).squeeze(1) + log_determinant).exp()
    assert density.sum().item() * 200 / 400_000 == pytest.approx(1.0, abs=1e-6)


def test_untrained_flow_changes_only_the_order() -> None:
    flow, z = CouplingFlow(6, 4, embedding=3, hidden=8), torch.randn(4, 6)
    assert torch.equal(flow(z, LABELS), z)
    same, log_determinant = flow.inverse(z, LABELS)
    assert torch.equal(same, z)
    assert torch.equal(log_determinant, torch.zeros(4))


def test_flow_without_layers_is_the_identity() -> None:
    flow, z = CouplingFlow(6, 0, embedding=3, hidden=8), torch.randn(4, 6)
    assert not list(flow.parameters())
    assert torch.equal(flow(z, LABELS), z)
    assert torch.equal(flow.inverse(z, LABELS)[1], torch.zeros(4))


def test_flow_depends_on_the_label_and_knows_others() -> None:
    flow, z = random_flow(6), torch.randn(1, 6).double().expand(3, -1)
    three, none, other = flow(z, torch.tensor([3, -1, 12]))
    torch.testing.assert_close(none, other)
    assert not torch.allclose(three, none)


def test_scale_of_a_coupling_is_bounded() -> None:
    coupling = Coupling(2, embedding=1, hidden=4)
    torch.nn.init.constant_(coupling.network[-1].bias, 1000.0)  # type: ignore[arg-type]
    moved, shift = (coupling(torch.tensor([[0.0, x]]), LABELS[:1])[0, 1].item() for x in (1.0, 0.0))
    assert moved - shift == pytest.approx(math.exp(LARGEST_LOG_SCALE), rel=1e-4)
