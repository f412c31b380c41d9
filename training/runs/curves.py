"""Training curves: a picture of a run's metrics by epoch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.figures import new_figure, save_figure
from training.runs.progress import NUMBERED


def plot(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw one panel per metric; train_x, validation_x and the numbered x_0, x_1 ... share the panel of x.

    The metrics are those of the last epoch. An epoch may lack one: a new one, or one of unjudged samples.
    """
    panels: dict[str, list[str]] = defaultdict(list)
    for name in history[-1]:
        if name not in ("epoch", "seconds"):
            panels[NUMBERED.sub("", name.removeprefix("train_").removeprefix("validation_"))].append(name)
    figure, axes = new_figure(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            known = [(line["epoch"], line[name]) for line in history if name in line]
            axis.plot(*zip(*known, strict=True), label=name)
        axis.set(title=title, xlabel="epoch")
        axis.legend(fontsize="small" if len(names) < 5 else 5)
    save_figure(figure, path)
