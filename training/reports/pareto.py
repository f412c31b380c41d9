"""The command `pareto`: what each classifier costs and what it gets right, and which are worth their cost."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.models.manifest import MODEL_FILE
from training.cards.card import titled_table
from training.datasets.splits import Splits
from training.figures import new_figure, save_figure
from training.files import write_atomically
from training.quantization.int8 import single_threaded_session
from training.quantization.speed import cpu_name, seconds_per_run
from training.reports.latest import latest_versions
from training.versions import read_verified

JSON_FILE = "pareto.json"
PICTURE_FILE = "pareto.png"

BATCHES = (1, 64)
ROUNDS = 9

NAME_PLACES = (("left", 6, 4), ("left", 6, -12), ("right", -8, 4), ("right", -8, -12))
"""Where a point's name may be: its alignment, and the points to the right and upwards."""


@dataclass(frozen=True)
class Point:
    """One classifier. accuracy: on the test set, 0..1; size: bytes of the graph.

    microseconds: CPU time per image on one thread, by batch size.
    """

    name: str
    accuracy: float
    size: int
    microseconds: Mapping[int, float]


def pareto(names: Sequence[str], models_dir: Path, splits: Splits, folder: Path) -> list[Point]:
    """Measure the latest version of each named classifier, or of all; print a table and draw a picture.

    The accuracies are those of the manifests. folder: for pareto.json and pareto.png.
    Raises EvaluationError or SourceError.
    """
    found = latest_versions(names, models_dir, splits, "classification")
    sessions = {name: single_threaded_session(version / MODEL_FILE) for name, version in found.items()}
    images = splits.validation.images
    times = {batch: _microseconds(sessions, images[np.arange(batch) % len(images)]) for batch in BATCHES}
    points = [
        Point(
            name,
            float(read_verified(version).metrics["test_accuracy"]),
            (version / MODEL_FILE).stat().st_size,
            {batch: round(by_name[name], 2) for batch, by_name in times.items()},
        )
        for name, version in found.items()
    ]
    points.sort(key=lambda point: point.microseconds[BATCHES[-1]])
    print(table(points))
    content = {"cpu": cpu_name(), "points": [asdict(point) for point in points]}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JSON_FILE, (json.dumps(content, indent=2) + "\n").encode())
    _draw(points, folder / PICTURE_FILE)
    return points


def front(points: Iterable[Point], batch: int) -> set[str]:
    """The names of the points that no other beats: by being as accurate and as fast, and better in one."""
    points = list(points)
    return {
        point.name
        for point in points
        if not any(
            other.accuracy >= point.accuracy
            and other.microseconds[batch] <= point.microseconds[batch]
            and (other.accuracy, other.microseconds[batch]) != (point.accuracy, point.microseconds[batch])
            for other in points
        )
    }


def table(points: Sequence[Point]) -> str:
    """The points in Markdown, the fastest first; those on the front of a batch size are bold."""
    best = set().union(*(front(points, batch) for batch in BATCHES))
    rows = [
        (
            f"**`{point.name}`**" if point.name in best else f"`{point.name}`",
            f"{100 * point.accuracy:.2f} %",
            f"{point.size / 1e6:.1f} MB",
            *(f"{point.microseconds[batch]:.1f}" for batch in BATCHES),
        )
        for point in points
    ]
    heads = ["model", "accuracy", "size", *(f"µs an image, batch {batch}" for batch in BATCHES)]
    return titled_table(heads, rows)


def _microseconds(
    sessions: Mapping[str, onnxruntime.InferenceSession], images: NDArray[np.uint8]
) -> dict[str, float]:
    """CPU time per image of each session: the median of ROUNDS, in which the sessions take turns."""
    rounds = [
        {name: seconds_per_run(session, {"images": images}) for name, session in sessions.items()}
        for _ in range(ROUNDS)
    ]
    return {name: 1e6 * statistics.median(seen[name] for seen in rounds) / len(images) for name in sessions}


def _draw(points: Sequence[Point], path: Path) -> None:
    """Draw accuracy by CPU time, the area of a point by its file's size, and the front as steps."""
    batch = BATCHES[-1]
    best = front(points, batch)
    figure, axis = new_figure(figsize=(7, 6))
    places = {point.name: (point.microseconds[batch], 100 * point.accuracy) for point in points}
    for point in points:
        colour = "tab:blue" if point.name in best else "tab:grey"
        axis.scatter(*places[point.name], s=20 + 25 * point.size / 1e6, color=colour, alpha=0.6, linewidth=0)
    steps = [place for name, place in places.items() if name in best]
    axis.step(*zip(*steps, strict=True), where="post", linewidth=1, color="tab:blue")
    axis.set(
        xscale="log",
        xlabel=f"CPU time an image, µs (one thread, batch {batch})",
        ylabel="accuracy on the test set, %",
        title="area: size of the file",
    )
    axis.margins(x=0.25, y=0.2)
    low, high = axis.get_xlim()
    ticks = [step * 10**power for power in range(7) for step in (1, 2, 5)]
    axis.set_xticks([tick for tick in ticks if low < tick < high])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    figure.tight_layout()  # the names are measured where they stay
    _name(axis, places)
    save_figure(figure, path, dpi=100)


def _name(axis: Any, places: Mapping[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, where it covers no other name if there is such a place."""
    boxes: list[Any] = []
    for name, place in places.items():
        text = axis.annotate(name, place, xytext=(0, 0), textcoords="offset points", fontsize="small")
        for side, right, up in NAME_PLACES:
            text.set(ha=side, position=(right, up))
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in boxes):
                break
        boxes.append(box)
