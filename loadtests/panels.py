"""Draws the dashboard with matplotlib: each panel at its place, with title, unit, legend and curves.

Grafana is not involved: fonts, colours and ticks are matplotlib's.
"""

import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from loadtests.dashboard import Curve, Panel, Span, curves, number, panels, variables
from loadtests.prometheus import Prometheus

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLUMNS = 24
SQUARE = (0.62, 0.34)
"""Width and height of one square of Grafana's grid. All lengths are in inches."""
DOTS = 100
HEADER = 0.5
GAP = 0.05
LEGEND_LINE = 0.15
LEGEND_LINES = 3
LETTER = 0.062

INK, PALE, EDGE = "#333333", "#777777", "#d8d8dd"
COLOURS = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
LINES = [COLOURS[index] for index in (*range(0, 20, 2), *range(1, 20, 2))]  # strong colours first

STYLE: Any = {
    "font.size": 8,
    "text.color": INK,
    "date.autoformatter.minute": "%H:%M",
    "date.autoformatter.second": "%H:%M:%S",
}

UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "none": ((1, ""),),
    "reqps": ((1, " req/s"),),
    "rowsps": ((1, " rows/s"),),
    "ops": ((1, " ops/s"),),
    "percentunit": ((0.01, " %"),),
    "s": ((1, " s"), (1e-3, " ms"), (1e-6, " µs")),
    "bytes": ((1024**3, " GiB"), (1024**2, " MiB"), (1024, " KiB"), (1, " B")),
}
"""Grafana's name of a unit -> its sizes, largest first, and the suffix of each."""

NOTE = "Drawn by matplotlib, not by Grafana, from helm/dashboards/inkserve.json and Prometheus's answers."

Box = tuple[float, float, float, float]
"""Left, bottom, width, height, in inches."""


def draw(prometheus: Prometheus, span: Span, output: Path) -> None:
    """Draw every panel over the period into a PNG, whose text chunk `Panels` names them."""
    board, values = panels(), variables(prometheus)
    height = max(top + tall for _, top, _, tall in (panel.place for panel in board))
    size = (COLUMNS * SQUARE[0], height * SQUARE[1] + HEADER)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, facecolor="white")
        _header(figure, values, span)
        for panel in board:
            _draw_panel(figure, panel, prometheus, values, span)
        _save(figure, output, titles(board))
        plt.close(figure)


def titles(board: Sequence[Panel]) -> str:
    """The content of the picture's text chunk `Panels`."""
    return ", ".join(panel.title for panel in board)


def say(value: float, unit: str) -> str:
    """Format a figure with its unit. Raises KeyError if the unit is unknown here."""
    sizes = UNITS[unit]
    small = sizes[-1] if value else min(sizes, key=lambda each: abs(each[0] - 1))  # 0 s, not 0 µs
    size, suffix = next((each for each in sizes if abs(value) >= each[0]), small)
    scaled = value / size
    return (f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}") + suffix


def _save(figure: Figure, output: Path, panels_text: str) -> None:
    """Save with a palette, which takes a third of the bytes of full colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS, format="png")
    about = PngImagePlugin.PngInfo()
    about.add_text("Panels", panels_text)
    with Image.open(drawn) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(output, optimize=True, pnginfo=about)


def _header(figure: Figure, values: Mapping[str, str], span: Span) -> None:
    start, end = (datetime.fromtimestamp(moment, UTC) for moment in (span.start, span.end))
    chosen = "   ".join(f"{name}: {value}" for name, value in values.items())
    line, right = figure.get_figheight() - HEADER / 2, figure.get_figwidth() - 2 * GAP
    _text(figure, 2 * GAP, line, "inkserve", size=14, weight="bold")
    _text(figure, 1.3, line, f"{chosen}   {start:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC")
    _text(figure, right, line, NOTE, ha="right", color=PALE)


def _draw_panel(
    figure: Figure, panel: Panel, prometheus: Prometheus, values: Mapping[str, str], span: Span
) -> None:
    box = _box(figure, panel)
    left, bottom, width, height = box
    if panel.kind == "row":
        _text(figure, left + 0.05, bottom + height / 2, panel.title, size=10, weight="bold")
        return
    card = Rectangle((left, bottom), width, height, fc="white", ec=EDGE, zorder=-1)  # below the graph
    card.set_transform(figure.dpi_scale_trans)
    figure.add_artist(card)
    _text(figure, left + 0.1, bottom + height - 0.15, panel.title, weight="bold")
    if panel.kind == "stat":
        _draw_number(figure, box, number(prometheus, panel, values, span), panel.unit)
        return
    shown = [
        curve
        for curve in curves(prometheus, panel, values, span)
        if any(map(math.isfinite, curve.line.values))
    ]
    if not shown:
        middle = left + width / 2, bottom + height / 2
        _text(figure, *middle, "No data", size=10, ha="center", color=PALE)
    elif panel.kind == "heatmap":
        _draw_heatmap(figure, box, shown, span)
    else:
        _draw_graph(figure, box, panel, shown, span)


def _draw_number(figure: Figure, box: Box, value: float | None, unit: str) -> None:
    text = "No data" if value is None or math.isnan(value) else say(value, unit)
    across, up = box[0] + box[2] / 2, box[1] + box[3] / 2 - 0.1
    _text(figure, across, up, text, size=20, ha="center", color="tab:green")


def _draw_graph(figure: Figure, box: Box, panel: Panel, shown: Sequence[Curve], span: Span) -> None:
    left, bottom, width, height = box
    entries = [(curve.name, LINES[index % len(LINES)]) for index, curve in enumerate(shown)]
    legend = _wrap(entries, width - 0.2) if panel.has_legend else []
    below = 0.35 + LEGEND_LINE * len(legend)
    axes = figure.add_axes(_share(figure, (left + 0.75, bottom + below, width - 0.9, height - below - 0.3)))
    for curve, (_, colour) in zip(shown, entries, strict=True):
        times = _times(curve.line.times)
        axes.plot(times, curve.line.values, color=colour, linewidth=1)
        axes.fill_between(times, curve.line.values, color=colour, alpha=0.08, linewidth=0)
    highest = max(value for curve in shown for value in curve.line.values if math.isfinite(value))
    _scale(axes, panel, highest, span)
    for index, line in enumerate(reversed(legend)):
        _draw_legend_line(figure, left + 0.1, bottom + 0.1 + LEGEND_LINE * index, line)


def _draw_heatmap(figure: Figure, box: Box, shown: Sequence[Curve], span: Span) -> None:
    """Draw the cumulative buckets of a histogram, named by their bounds, as one row for each bucket."""
    left, bottom, width, height = box
    buckets = sorted(shown, key=lambda curve: float(curve.name))
    times = sorted({time for curve in buckets for time in curve.line.times})
    cumulative = np.zeros((len(buckets), len(times)))
    for row, curve in enumerate(buckets):
        cumulative[row, np.searchsorted(times, curve.line.times)] = np.nan_to_num(curve.line.values)
    counts = np.diff(cumulative, axis=0, prepend=0.0).clip(min=0)
    used = np.flatnonzero(counts.any(axis=1))
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, len(buckets) - 1)
    axes = figure.add_axes(_share(figure, (left + 0.75, bottom + 0.35, width - 0.9, height - 0.65)))
    across = _times([times[0] - span.scrape_seconds, *times])  # a rate is of the time before it
    axes.pcolormesh(across, np.arange(first, last + 2) - 0.5, counts[first : last + 1], cmap="YlOrRd")
    names = [say(float(curve.name), "s") if curve.name != "+Inf" else "more" for curve in buckets]
    axes.set_yticks(np.arange(first, last + 1), names[first : last + 1])
    axes.set_xlim(*_times([span.start, span.end]))
    axes.tick_params(length=0, labelsize=7, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _scale(axes: Axes, panel: Panel, highest: float, span: Span) -> None:
    """Scale the y axis from 0 to the highest value, or to the lowest threshold if that is higher."""
    top = max(highest, *(value for value, _ in panel.thresholds[:1]), 0.0)
    for value, colour in panel.thresholds:
        if value <= top:
            axes.axhline(value, color=colour)
    axes.set_ylim(0, 1.05 * top or 1)
    axes.set_xlim(*_times([span.start, span.end]))
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: say(value, panel.unit))
    axes.grid(color=EDGE, linewidth=0.5)
    axes.tick_params(length=0, labelsize=7, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _times(seconds: Sequence[float]) -> NDArray[np.datetime64]:
    return (1e3 * np.asarray(seconds)).astype("datetime64[ms]")


def _wrap(names: Sequence[tuple[str, Any]], width: float) -> list[list[tuple[str, Any]]]:
    """Wrap the legend's entries to the width; entries beyond three lines are only counted."""
    lines: list[list[tuple[str, Any]]] = [[]]
    used = 0.0
    for index, (name, colour) in enumerate(names):
        if lines[-1] and used + _length(name) > width:
            if len(lines) == LEGEND_LINES:
                lines[-1][-1] = (f"and {len(names) - index + 1} more", "white")
                break
            lines.append([])
            used = 0.0
        lines[-1].append((name, colour))
        used += _length(name)
    return lines


def _length(name: str) -> float:
    return 0.3 + LETTER * len(name)


def _draw_legend_line(figure: Figure, left: float, height: float, line: Sequence[tuple[str, Any]]) -> None:
    for name, colour in line:
        mark = Rectangle((left, height - 0.015), 0.12, 0.03, fc=colour, ec="none")
        mark.set_transform(figure.dpi_scale_trans)
        figure.add_artist(mark)
        _text(figure, left + 0.16, height, name, size=7)
        left += _length(name)


def _text(figure: Figure, left: float, height: float, text: str, **style: Any) -> None:
    figure.text(left, height, text, va="center_baseline", transform=figure.dpi_scale_trans, **style)


def _box(figure: Figure, panel: Panel) -> Box:
    """A panel's card on the page. Grafana counts squares from the top, matplotlib inches from the bottom."""
    left, top, wide, tall = panel.place
    width, height = wide * SQUARE[0], tall * SQUARE[1]
    bottom = figure.get_figheight() - HEADER - top * SQUARE[1] - height
    return left * SQUARE[0] + GAP, bottom + GAP, width - 2 * GAP, height - 2 * GAP


def _share(figure: Figure, box: Box) -> Box:
    width, height = figure.get_size_inches()
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height
