"""Attributions and gradient graphs against captum and torch's own gradients, on a small network."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from captum._utils.models.model import Model
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import LimeBase
from captum.attr import Occlusion as CaptumOcclusion
from numpy.typing import NDArray
from torch import Tensor, nn

from service.content.attributions import (
    KERNEL_WIDTH,
    RIDGE,
    IntegratedGradients,
    Lime,
    Occlusion,
    Perturbation,
)
from service.models.manifest import ImageLayout
from tests.support.models import IMAGES, PROBABILITIES, add_reader
from training.errors import GradientError
from training.export.to_onnx import to_onnx
from training.gradients.backward import gradient_graph
from training.onnx_files import open_graph

LAYOUT = ImageLayout(28, 28, 1, False)
TARGET = 3


class Small(nn.Module):
    """Convolutions with a stride, padding and a kernel that leaves pixels over, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        last = nn.Linear(96, 10)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=3),
            nn.ReLU(),
            nn.Flatten(),
            last,
        )
        with torch.no_grad():
            last.weight *= 8  # else all probabilities would be near a tenth

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, (n, 10), of images (n, 28, 28) in 0..255."""
        logits: Tensor = self.body(images.unsqueeze(1).float() / 255)
        return logits.softmax(1)


@pytest.fixture(scope="module")
def network() -> Small:
    return Small().eval()


@pytest.fixture(scope="module")
def graph(network: Small) -> onnx.ModelProto:
    return to_onnx(network, [IMAGES], [PROBABILITIES])


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    picture = np.zeros((28, 28), np.uint8)
    picture[5:23, 8:20] = np.random.default_rng(0).integers(0, 256, (18, 12))
    return picture


def scores_of(network: nn.Module, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        probabilities: NDArray[np.float32] = network(torch.from_numpy(rows))[:, TARGET].numpy()
    return probabilities


def attributed(method: Perturbation, network: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = method.rows(image, LAYOUT)
    assert len(rows) == 1 + method.count(LAYOUT)
    assert np.array_equal(rows[0], image)
    return method.attribute(image, LAYOUT, scores_of(network, rows))


@pytest.mark.parametrize(("patch", "stride"), [(4, 2), (5, 3), (7, 5), (3, 3), (28, 1)])
def test_occlusion_is_captums(network: Small, image: NDArray[np.uint8], patch: int, stride: int) -> None:
    expected = CaptumOcclusion(network).attribute(
        torch.from_numpy(image)[None].float(),
        sliding_window_shapes=(patch, patch),
        strides=(stride, stride),
        baselines=0,
        target=TARGET,
        perturbations_per_eval=64,
    )
    seen = attributed(Occlusion(patch, stride), network, image)
    np.testing.assert_allclose(seen, expected[0].numpy(), atol=1e-6)


class Ridge(Model):  # type: ignore[misc]
    """Ridge regression with weights and an intercept, solved as one least-squares problem."""

    coefficients: Tensor

    def fit(self, train_data: Any, **_: object) -> dict[str, float]:
        """Fit to the rows, targets and weights of a loader."""
        columns, targets, weights = (torch.cat(part).double() for part in zip(*train_data, strict=True))
        root = weights.sqrt()[:, None]
        with_intercept = torch.cat([columns, torch.ones(len(columns), 1)], 1) * root
        penalty = torch.eye(columns.shape[1], columns.shape[1] + 1).double() * RIDGE**0.5
        system = torch.cat([with_intercept, penalty])
        right = torch.cat([targets.reshape(-1, 1) * root, torch.zeros(len(penalty), 1)])
        self.coefficients = torch.linalg.lstsq(system, right).solution[:-1, 0]
        return {}

    def representation(self) -> Tensor:
        """The coefficients without the intercept."""
        return self.coefficients

    def __call__(self, x: Tensor) -> Tensor:
        """Not asked for here."""
        raise NotImplementedError


def test_lime_is_captums(network: Small, image: NDArray[np.uint8]) -> None:
    method = Lime(4, 80, seed=5)
    segments, kept = method.design(image, LAYOUT)
    choices = iter(torch.from_numpy(kept).float())

    def similarity(_: Tensor, __: Tensor, choice: Tensor, **___: object) -> Tensor:
        cosine = torch.nn.functional.cosine_similarity(choice, torch.ones_like(choice))
        return torch.exp(-((1 - cosine) ** 2) / (2 * KERNEL_WIDTH**2))

    def picture(choice: Tensor, original: Tensor, **_: object) -> Tensor:
        shown = torch.cat([choice[0], torch.ones(1)])[torch.from_numpy(segments)]
        return original * shown

    captum = LimeBase(
        network,
        interpretable_model=Ridge(),
        similarity_func=similarity,
        perturb_func=lambda *_, **__: next(choices)[None],
        perturb_interpretable_space=True,
        from_interp_rep_transform=picture,
        to_interp_rep_transform=None,
    )
    coefficients = captum.attribute(
        torch.from_numpy(image)[None].float(), target=TARGET, n_samples=len(kept)
    ).reshape(-1)
    assert len(coefficients) == segments.max() + 1 == 15
    expected = np.append(coefficients.numpy(), 0)[segments]
    seen = attributed(method, network, image)
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    assert np.ptp(seen) > 1e-3  # a hundred times the tolerance


@pytest.mark.slow
def test_integrated_gradients_are_captums(
    network: Small, graph: onnx.ModelProto, image: NDArray[np.uint8]
) -> None:
    expected = CaptumIntegratedGradients(network).attribute(
        torch.from_numpy(image)[None].float(), target=TARGET, n_steps=20, method="riemann_middle"
    )
    method = IntegratedGradients(20)
    inputs = {"images": method.rows(image), "label": np.full(20, TARGET)}
    (gradients,) = open_graph(gradient_graph(graph)).run(["gradient"], inputs)
    seen = method.attribute(image, LAYOUT, gradients)
    np.testing.assert_allclose(seen, expected[0].numpy(), atol=1e-6)
    both = np.stack([image, np.zeros_like(image)])
    whole, empty = scores_of(network, both)
    assert seen.sum() == pytest.approx(whole - empty, abs=1e-3)


@pytest.mark.slow
def test_a_gradient_graph_gives_torchs_gradients(network: Small, graph: onnx.ModelProto) -> None:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.uniform(0, 255, (10, 28, 28)).astype(np.float32)).requires_grad_()
    labels = torch.arange(10)
    network(images).gather(1, labels[:, None]).sum().backward()
    session = open_graph(gradient_graph(graph))
    (seen,) = session.run(["gradient"], {"images": images.detach().numpy(), "label": labels.numpy()})
    assert images.grad is not None
    largest = images.grad.abs().max().item()
    assert largest > 1e-6
    np.testing.assert_allclose(seen, images.grad.numpy(), atol=1e-4 * largest)


def test_a_graph_with_an_operator_without_a_rule_has_no_gradient(tmp_path: Path) -> None:
    add_reader(tmp_path)
    (path,) = tmp_path.rglob("model.onnx")
    with pytest.raises(GradientError, match=r"is MatMul, expected one of Cast, Conv, Div, Flatten, Gemm"):
        gradient_graph(onnx.load(path))


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "channels last"])
def test_colours_count_together(first: bool) -> None:
    """An image of three equal channels has the grey image's map, for a model that sees their mean."""
    grey = np.random.default_rng(2).integers(1, 256, (6, 8)).astype(np.uint8)
    colour, layout = np.stack([grey] * 3, 0 if first else -1), ImageLayout(6, 8, 3, first)

    def scores(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        every: NDArray[np.float32] = rows.reshape(len(rows), -1).mean(1).astype(np.float32)
        return every

    for method in (Occlusion(3, 2), Lime(2, 30, 0)):
        seen = method.attribute(colour, layout, scores(method.rows(colour, layout)))
        plain = method.attribute(grey, ImageLayout(6, 8, 1, False), scores(method.rows(grey, layout)))
        np.testing.assert_allclose(seen, plain, rtol=1e-4)
    path = IntegratedGradients(4)
    ones = np.ones((4, *colour.shape), np.float32)
    assert path.rows(colour).shape == (4, *colour.shape)
    np.testing.assert_allclose(path.attribute(colour, layout, ones), 3.0 * grey)
