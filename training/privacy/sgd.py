"""SGD on Poisson samples, and its private form, DP-SGD (Abadi et al. 2016), with Opacus.

Opacus gives each image's gradient, clips it, adds the noise and counts the steps. Its DataLoader is not used:
the images are one tensor here, from which `poisson` draws as its UniformWithReplacementSampler does.
"""

import warnings
from typing import Any

import torch
from opacus.accountants import RDPAccountant
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from training.errors import PrivacyError
from training.privacy.accounting import Steps

# The images whose gradients are in memory at once: 17 MB for 8,340 parameters.
ROWS_AT_ONCE = 512


def poisson(images: int, rate: float, generator: torch.Generator) -> Tensor:
    """The row numbers of a Poisson sample, int64: each image is in it with probability `rate`."""
    drawn = torch.rand(images, generator=generator, device=generator.device) < rate
    return drawn.nonzero().squeeze(1)


def check_private(model: nn.Module) -> None:
    """Raise PrivacyError if a layer mixes the images of a batch, or if Opacus refuses it; sets train mode."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            raise PrivacyError(
                f"layer {name} is a {type(layer).__name__}, which mixes the images of a batch, so that the "
                "share of one image in the gradient has no bound: expected a network without batch "
                "normalisation"
            )
    problems = ModuleValidator.validate(model.train())
    if problems:
        raise PrivacyError(f"the network cannot be trained privately: {problems[0]}")


class Sgd:
    """SGD with momentum on Poisson samples, without privacy.

    model: gives logits, (n, 10). images: the number to draw from. batch_size: the expected size of a sample;
    a gradient is the sum over the sample divided by it, because the size of a sample depends on which images
    there are. generator: of the samples (and the noise).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        images: int,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        generator: torch.Generator,
    ) -> None:
        self.sampling_rate = batch_size / images
        self._model = model
        self._batch_size = batch_size
        self._generator = generator
        self._optimizer: Any = torch.optim.SGD(model.parameters(), learning_rate, momentum)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Draw from all images, and make a step; returns the sum of the losses over the expected size.

        inputs: what the model takes, of all images. labels: (images,) int64. The loss is not private.
        """
        rows = poisson(len(labels), self.sampling_rate, self._generator)
        return self._update(inputs[rows], labels[rows])

    def _update(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._model(inputs), labels, reduction="sum") / self._batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser."""
        state: dict[str, Any] = self._optimizer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self._optimizer.load_state_dict(state_dict)


class PrivateSgd(Sgd):
    """DP-SGD: each image's gradient is clipped to `clip_norm`, and Gaussian noise is added to their sum.

    The result is divided by `clip_norm`, so that the learning rate does not depend on it (De et al. 2022).
    Raises PrivacyError if the network cannot be trained so.
    """

    def __init__(self, model: nn.Module, *, noise_multiplier: float, clip_norm: float, **common: Any) -> None:
        check_private(model)
        common["learning_rate"] /= clip_norm
        super().__init__(GradSampleModule(model, loss_reduction="sum"), **common)
        self._optimizer = DPOptimizer(
            self._optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=self._batch_size,
            generator=self._generator,
        )
        self._made = RDPAccountant()  # counts the steps, for any accountant
        self._optimizer.attach_step_hook(self._made.get_optimizer_hook_fn(sample_rate=self.sampling_rate))

    @property
    def history(self) -> list[Steps]:
        """The steps made."""
        return list(self._made.history)

    def _update(self, inputs: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=inputs.device)
        parts = list(zip(*(torch.split(each, ROWS_AT_ONCE) for each in (inputs, labels)), strict=True))
        for i, part in enumerate(parts):
            self._optimizer.zero_grad()
            total += self._gradients(*part)
            if i < len(parts) - 1:
                self._optimizer.signal_skip_step()
            self._optimizer.step()
        return total / self._batch_size

    def _gradients(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Give every parameter its gradients by image, (n, ...), and return the sum of the losses."""
        if not len(labels):  # an empty sample is a step too: it adds the noise
            for weights in self._optimizer.params:
                weights.grad_sample = torch.zeros(0, *weights.shape, device=weights.device)
            return torch.zeros((), device=inputs.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            loss = functional.cross_entropy(self._model(inputs), labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser, and the steps made."""
        return {"optimizer": super().state_dict(), "history": [list(each) for each in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        super().load_state_dict(state_dict["optimizer"])
        self._made.history = [tuple(each) for each in state_dict["history"]]
