"""Training curves: a picture of a run's metrics by epoch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from training.files import write_atomically


def plot(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw one panel per metric; train_x and validation_x share the panel of x."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, list[str]] = defaultdict(list)
    for name in history[-1]:
        if name not in ("epoch", "seconds"):
            panels[name.removeprefix("train_").removeprefix("validation_")].append(name)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            axis.plot([line["epoch"] for line in history], [line[name] for line in history], label=name)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    buffer = BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
