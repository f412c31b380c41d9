"""The command `explain`: how good a classifier's explanations are, by three measures.

Deletion and insertion (Petsiuk, Das and Saenko 2018): the target's probability while the pixels that a map
ranks first are removed from the image, or put on an empty one. Agreement: the rank correlation of two
methods' maps. The sanity check of Adebayo et al. 2018: the rank correlation of a map with that of the same
network, whose weights are randomised layer by layer from the last one down; an explanation must change.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from service.content.attributions import IntegratedGradients, Lime, Map, Occlusion, Perturbation
from service.models.manifest import MODEL_FILE
from training.cards.card import titled_table
from training.datasets.splits import Splits, spread
from training.evaluation.attribution import LAYOUT, STEPS
from training.evaluation.rank_correlation import spearman
from training.figures import new_figure, save_figure
from training.files import write_atomically
from training.gradients.backward import GRADIENT, IMAGES, LABEL, gradient_graph
from training.onnx_files import open_graph, run_in_parts
from training.reports.latest import latest_versions
from training.versions import read_verified

JSON_FILE, PICTURE_FILE = "explanations.json", "explanations.png"

METHODS: Mapping[str, Perturbation] = {"occlusion": Occlusion(4, 2), "lime": Lime(4, 200, 0)}
"""With what /explain does if it is not told otherwise."""

NAMES = (*METHODS, "integrated_gradients")
RANDOM, BRIGHTNESS = "random", "brightness"
"""What the methods must beat: pixels in random order, and the brightest first."""

PIXELS_A_STEP = 14
MOST_PIXELS = 392
"""Half of an image: few digits have more ink."""

ROWS = 32
"""Rows of one run: a graph of convolutions gains nothing from more."""

SEED = 0

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A classifier and its gradient, as sessions on one thread."""

    classifier: onnxruntime.InferenceSession
    gradient: onnxruntime.InferenceSession

    @classmethod
    def of(cls, graph: onnx.ModelProto) -> "Network":
        """Open a classifier's graph, and that of its gradient."""
        return cls(open_graph(graph, threads=1), open_graph(gradient_graph(graph), threads=1))

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Those of every label, (n, 10)."""
        probabilities: NDArray[np.float32]
        (probabilities,) = run_in_parts(self.classifier, ["probabilities"], {IMAGES: images}, ROWS)
        return probabilities

    def explain(self, image: NDArray[np.uint8], label: int) -> dict[str, Map]:
        """Each method's map of a label."""
        maps = {
            name: method.attribute(image, LAYOUT, self.probabilities(method.rows(image, LAYOUT))[:, label])
            for name, method in METHODS.items()
        }
        path = IntegratedGradients(STEPS)
        inputs = {IMAGES: path.rows(image), LABEL: np.full(STEPS, label)}
        (gradients,) = run_in_parts(self.gradient, [GRADIENT], inputs, ROWS)
        return maps | {NAMES[-1]: path.attribute(image, LAYOUT, gradients)}


def explain(
    name: str,
    models_dir: Path,
    splits: Splits,
    on: Literal["validation", "test"],
    folder: Path,
    digits: int,
    randomised_digits: int,
) -> Report:
    """Measure the explanations of a classifier's latest version; print tables, and draw a picture.

    digits: images, spread over the set; each is explained for its top label. randomised_digits: of these, for
    the sanity check. folder: for JSON_FILE and PICTURE_FILE.
    Raises EvaluationError, SourceError or GradientError.
    """
    (version,) = latest_versions([name], models_dir, splits, "classification").values()
    manifest = read_verified(version)
    data = splits.validation if on == "validation" else splits.test
    images = data.images[spread(len(data), digits)]
    graph = onnx.load(version / MODEL_FILE)
    network = Network.of(graph)
    labels = network.probabilities(images).argmax(1).tolist()
    maps = [network.explain(*pair) for pair in zip(images, labels, strict=True)]
    chosen = spread(len(images), randomised_digits)
    report = {
        "model": f"{manifest.name}/{manifest.version}",
        "on": on,
        "digits": len(images),
        "randomised_digits": len(chosen),
        "curves": curves(network, images, labels, maps),
        "agreement": agreement(images, maps),
        "sanity": sanity(graph, images[chosen], [labels[i] for i in chosen], [maps[i] for i in chosen]),
    }
    print(f"{quality_table(report)}\n\n{agreement_table(report)}\n\n{sanity_table(report)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JSON_FILE, (json.dumps(report, indent=2) + "\n").encode())
    _draw(report, folder / PICTURE_FILE)
    return report


def curves(
    network: Network, images: NDArray[np.uint8], labels: Sequence[int], maps: Sequence[Mapping[str, Map]]
) -> dict[str, dict[str, list[float]]]:
    """The mean probability of the target after each step: by order, then by `deletion` or `insertion`."""
    rng = np.random.default_rng(SEED)
    sums: dict[str, dict[str, NDArray[np.float64]]] = {}
    for image, label, found in zip(images, labels, maps, strict=True):
        ranked = {**found, RANDOM: rng.permutation(image.size), BRIGHTNESS: image}
        for name, values in ranked.items():
            removed, added = steps(image, values)
            seen = network.probabilities(np.concatenate([removed, added]))[:, label]
            halves = dict(zip(("deletion", "insertion"), np.split(seen, 2), strict=True))
            for kind, half in halves.items():
                total = sums.setdefault(name, {}).setdefault(kind, np.zeros(len(half)))
                total += half
    return {
        name: {kind: [round(float(each) / len(images), 6) for each in total] for kind, total in kinds.items()}
        for name, kinds in sums.items()
    }


def steps(image: NDArray[np.uint8], values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The image with ever more of its highest-valued pixels removed, and with these alone.

    (steps, 28, 28) each.
    """
    order = np.argsort(-values.ravel().astype(np.float64), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    limits = np.arange(0, MOST_PIXELS + 1, PIXELS_A_STEP)
    first = (place[None] < limits[:, None]).reshape(-1, *image.shape)
    return np.where(first, 0, image).astype(np.uint8), np.where(first, image, 0).astype(np.uint8)


def area(curve: Sequence[float]) -> float:
    """The area under a curve over 0..1, by trapezoids."""
    return float(np.trapezoid(curve, np.linspace(0, 1, len(curve))))


def agreement(images: NDArray[np.uint8], maps: Sequence[Mapping[str, Map]]) -> dict[str, float]:
    """The mean rank correlation of each pair of methods, over the pixels that hold ink."""
    return {
        f"{first} {second}": _mean_correlation(
            images, [found[first] for found in maps], [found[second] for found in maps]
        )
        for first, second in combinations(NAMES, 2)
    }


def sanity(
    graph: onnx.ModelProto,
    images: NDArray[np.uint8],
    labels: Sequence[int],
    maps: Sequence[Mapping[str, Map]],
) -> list[dict[str, Any]]:
    """For each layer, from the last: the maps' correlation if it and all behind it are randomised."""
    layers = [each.name for each in graph.graph.initializer if len(each.dims) > 1]
    found = []
    for last in range(len(layers) - 1, -1, -1):
        network = Network.of(randomised(graph, layers[last:]))
        others = [network.explain(*pair) for pair in zip(images, labels, strict=True)]
        correlations = {
            name: _mean_correlation(images, [each[name] for each in maps], [each[name] for each in others])
            for name in NAMES
        }
        found.append({"down_to": layers[last].removesuffix(".weight")} | correlations)
    return found


def randomised(graph: onnx.ModelProto, layers: Sequence[str]) -> onnx.ModelProto:
    """The graph with the weights of some layers in random order, which keeps their distribution."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    rng = np.random.default_rng(SEED)
    for tensor in made.graph.initializer:
        if tensor.name in layers:
            weights = numpy_helper.to_array(tensor)
            mixed = rng.permutation(weights.ravel()).reshape(weights.shape)
            tensor.CopyFrom(numpy_helper.from_array(mixed, tensor.name))
    return made


def _mean_correlation(images: NDArray[np.uint8], first: Sequence[Map], second: Sequence[Map]) -> float:
    pairs = zip(images, first, second, strict=True)
    return round(float(np.mean([spearman(a[image > 0], b[image > 0]) for image, a, b in pairs])), 4)


def quality_table(report: Report) -> str:
    """The areas under the curves, in Markdown."""
    names = (*NAMES, BRIGHTNESS, RANDOM)
    rows = [
        (_words(name), *(f"{area(report['curves'][name][kind]):.3f}" for kind in ("deletion", "insertion")))
        for name in names
    ]
    return titled_table(["order of the pixels", "deletion (low is good)", "insertion (high is good)"], rows)


def agreement_table(report: Report) -> str:
    """The rank correlations of the methods, in Markdown."""
    rows = [
        (" and ".join(_words(each) for each in pair.split()), f"{value:.2f}")
        for pair, value in report["agreement"].items()
    ]
    return titled_table(["methods", "rank correlation"], rows)


def sanity_table(report: Report) -> str:
    """The rank correlations with randomised weights, in Markdown."""
    rows = [(f"`{each['down_to']}`", *(f"{each[name]:.2f}" for name in NAMES)) for each in report["sanity"]]
    return titled_table(["randomised down to", *(_words(name) for name in NAMES)], rows)


def _words(name: str) -> str:
    return {"lime": "LIME"}.get(name, name.replace("_", " "))


def _draw(report: Report, path: Path) -> None:
    """Draw both curves and the sanity check."""
    figure, (deletion, insertion, check) = new_figure(1, 3, figsize=(13, 4))
    styles = {RANDOM: {"color": "tab:grey", "linestyle": ":"}, BRIGHTNESS: {"color": "k", "linestyle": "--"}}
    for axis, kind in ((deletion, "deletion"), (insertion, "insertion")):
        for name in (*NAMES, BRIGHTNESS, RANDOM):
            curve = report["curves"][name][kind]
            axis.plot(
                PIXELS_A_STEP * np.arange(len(curve)), curve, label=_words(name), **styles.get(name, {})
            )
        what = "removed" if kind == "deletion" else "shown"
        axis.set(title=kind, xlabel=f"pixels {what}", ylabel="probability of the target", ylim=(0, 1.02))
    deletion.legend(fontsize="small")
    stages = ["none", *(each["down_to"] for each in report["sanity"])]
    for name in NAMES:
        check.plot(stages, [1, *(each[name] for each in report["sanity"])], marker="o", label=_words(name))
    check.tick_params(axis="x", rotation=45)
    check.set(title="randomised weights", xlabel="down to layer", ylabel="rank correlation with the map")
    save_figure(figure, path)
