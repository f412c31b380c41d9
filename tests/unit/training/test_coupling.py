import pytest
import torch
from torch import Tensor

from training.families.coupling import coupled, pair


def new_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_pairs_are_a_permutation_that_costs_no_more(rows: int) -> None:
    images, noise = torch.randn(rows, 6, generator=new_generator()), torch.randn(rows, 6)
    chosen = pair(images, noise, new_generator())
    assert sorted(chosen.tolist()) == list(range(rows))
    cost = [(images - each).square().sum().item() for each in (noise[chosen], noise)]
    assert cost[0] <= cost[1] * (1 + 1e-6)  # float32 sums
    assert rows < 7 or cost[0] < 0.9 * cost[1]


def test_pairs_on_a_line_are_sorted() -> None:
    images, noise = torch.randn(2, 30, 1, generator=new_generator())
    chosen = pair(images, noise, new_generator(), sweeps=5000)
    order = images.squeeze(1).argsort()
    assert torch.equal(noise[chosen][order], noise.sort(0).values)


def draw(group: int) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.arange(50) % 3
    images = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(1)) + labels.view(-1, 1, 1, 1)
    return images, labels, coupled(images, labels, new_generator(), group)


def test_noise_stays_in_its_class() -> None:
    _, labels, single = draw(1)
    _, _, together = draw(64)
    assert not torch.equal(single, together)
    for label in range(3):
        sums = [each[labels == label].sum((1, 2, 3)).sort().values for each in (single, together)]
        torch.testing.assert_close(sums[0], sums[1])


@pytest.mark.slow
def test_larger_groups_bring_noise_nearer_and_repeatably() -> None:
    distances = []
    for group in (1, 3, 64):
        images, _, noise = draw(group)
        assert torch.equal(noise, draw(group)[2])
        distances.append((images - noise).square().mean().item())
    assert distances[0] > distances[1] > distances[2]
