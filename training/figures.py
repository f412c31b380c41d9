"""Figures as PNG files. Loads matplotlib when the first one is drawn."""

from io import BytesIO
from pathlib import Path
from typing import Any

from training.files import write_atomically


def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return a figure and its axes, as `matplotlib.pyplot.subplots` does; options are its own."""
    figure, axes = _pyplot().subplots(rows, columns, **options)
    return figure, axes


def save_figure(figure: Any, path: Path, dpi: int = 80) -> None:
    """Draw grids and write the figure as a PNG, whole or not at all; the same figure gives the same bytes."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    buffer = BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    _pyplot().close(figure)
    write_atomically(path, buffer.getvalue())


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
