import pytest
import torch
from torch import Tensor, nn

from training.datasets.splits import SIDE
from training.families.adversary import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    relativistic_loss,
    veiled,
)


class Quadratic(nn.Module):
    """A logit of a |x|^2 / 2 + b[label] . x, whose gradient is a x + b[label]."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))
        self.b = nn.Parameter(torch.arange(10.0).reshape(10, 1, 1, 1) / 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return (self.a * images.square() / 2 + self.b[labels] * images).sum((1, 2, 3))


def test_r1_is_the_mean_squared_norm_of_the_gradient() -> None:
    images, labels = torch.randn(4, 1, SIDE, SIDE, dtype=torch.float64), torch.tensor([0, 3, 3, 9])
    network = Quadratic().double()
    penalty = gradient_penalty(network, images, labels)
    gradient = 3 * images + labels.view(-1, 1, 1, 1) / 10
    assert penalty.item() == pytest.approx(gradient.square().sum((1, 2, 3)).mean().item(), rel=1e-12)
    penalty.backward()
    slope = (2 * gradient * images).sum((1, 2, 3)).mean().item()
    assert network.a.grad is not None
    assert network.a.grad.item() == pytest.approx(slope, rel=1e-12)


def test_losses_are_those_of_the_probabilities() -> None:
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.2])
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(2)) + bce(fake, torch.zeros(2))
    assert discriminator_loss(real, fake).item() == pytest.approx(expected.item(), rel=1e-6)  # float32
    assert generator_loss(fake).item() == pytest.approx(-fake.sigmoid().log().mean().item(), rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 7.5])
def test_the_relativistic_loss_sees_only_differences(shift: float) -> None:
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.2])
    expected = -((real - fake).sigmoid().log()).mean()
    assert relativistic_loss(real + shift, fake + shift).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_discriminator_may_look_at_every_pixel_first() -> None:
    deep = Discriminator(channels=4, channels_28=3, features=8, with_classes=False)
    strides = [layer.stride[0] for layer in deep.body if isinstance(layer, nn.Conv2d)]
    assert strides == [1, 2, 1, 2]
    assert deep(torch.randn(2, 1, SIDE, SIDE), torch.tensor([1, 9])).shape == (2,)


def test_a_discriminator_has_no_output_for_classes_that_it_does_not_learn() -> None:
    plain = Discriminator(channels=4, channels_28=0, features=8, with_classes=False)
    assert not any(name.startswith("classes") for name in plain.state_dict())


def test_a_discriminator_cannot_tell_images_by_their_exact_levels() -> None:
    images = torch.tensor([-1.3, -1.0, 0.2, 1.0, 4.0]).view(5, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    seen = veiled(images, 0.1 * noise)
    expected = torch.tensor([-1.0, -1.0, 0.2, 1.0, 1.0])
    torch.testing.assert_close(seen.mean((1, 2, 3)), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(seen.std((1, 2, 3)), torch.full((5,), 0.1), atol=0.01, rtol=0)
