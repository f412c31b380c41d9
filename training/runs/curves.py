"""Training curves: a picture of a run's metrics by epoch."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from training.files import write_atomically
from training.runs.progress import NUMBERED


def plot(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw one panel per metric; train_x, validation_x and the numbered x_0, x_1 ... share the panel of x.

    The metrics are those of the last epoch. An epoch of a resumed run may lack one that is new.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, list[str]] = defaultdict(list)
    for name in history[-1]:
        if name not in ("epoch", "seconds"):
            panels[NUMBERED.sub("", name.removeprefix("train_").removeprefix("validation_"))].append(name)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            values = [line.get(name, math.nan) for line in history]
            axis.plot([line["epoch"] for line in history], values, label=name)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small" if len(names) < 5 else 5)
    buffer = BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
