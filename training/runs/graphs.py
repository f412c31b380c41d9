"""Replays a training step as a CUDA graph: one launch instead of one per kernel. Knows nothing of models.

A step of small kernels is bound by their launches: 859 steps of the GAN take 8 s on an H100, whatever the
arithmetic costs. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs for the rules.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from training.terminal import notice

WARM_UP_STEPS = 3
"""Steps before the capture. The first ones allocate: an optimiser's moments, the workspaces of libraries."""

Metrics = dict[str, Tensor]


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep what an optimiser's step reads on the device, so that a graph reads its latest value.

    The learning rate becomes a float32 tensor, which `set_rate` fills. Call this after a checkpoint is
    loaded: it brings the groups of the run that saved it, which may have run without graphs.
    """
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place if it is a tensor, which a graph may read."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class GraphedStep:
    """A training step that runs a few times as it is, then is captured in a CUDA graph and replayed.

    step: from tensors to tensors by name, all on one CUDA device. It must write in place (weights, moments,
        averages), draw no random numbers, and neither wait for the device nor branch on a tensor's value.
        A step with two variants needs one GraphedStep for each.
    enabled: whether to capture at all; if not, each call is one of `step`.

    Every call is exactly one step: the warm-up's steps are real ones, and the capture runs nothing. If the
    capture fails, a line on stderr gives the reason, and each call is one of `step` from then on.
    """

    def __init__(self, step: Callable[..., Metrics], *, enabled: bool) -> None:
        self._step = step
        self._enabled = enabled
        self._warmed_up = 0
        self._stream: torch.cuda.Stream | None = None
        if enabled:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Metrics = {}

    @property
    def captured(self) -> bool:
        """Whether the next call replays the graph."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Metrics:
        """Run one step. A replay returns the same tensors each time: read them before the next call.

        inputs: of the same shapes and dtypes in each call; they are copied.
        """
        if not self._enabled:
            return self._step(*inputs)
        if self._warmed_up < WARM_UP_STEPS:
            self._warmed_up += 1
            return self._warm_up(inputs)
        if self._graph is None and not self._capture(inputs):
            return self._step(*inputs)
        return self._replay(inputs)

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Metrics:
        """Run the step on the stream of the capture, as torch requires."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> bool:
        """Record the step, which runs nothing, and return whether that worked."""
        usual, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        self._inputs = [each.clone() for each in inputs]
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._outputs = self._step(*self._inputs)
        except RuntimeError as error:
            # The end of a failed capture raises an error of its own, and leaves its stream the current one.
            torch.cuda.set_stream(usual)
            torch.cuda.synchronize()
            self._enabled = False
            cause = str(error.__context__ or error).partition("\n")[0]
            notice(f"a step cannot be captured in a CUDA graph ({cause}): it is launched kernel by kernel")
            return False
        self._graph = graph
        return True

    def _replay(self, inputs: tuple[Tensor, ...]) -> Metrics:
        assert self._graph is not None
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        self._graph.replay()
        return self._outputs
