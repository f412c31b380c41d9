"""The command `calibrate`: calibrates a published classifier's probabilities by a temperature.

Works on model.onnx alone, without the torch network. The weights and the labels stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from service.models.folder import read_info
from service.models.manifest import MODEL_FILE, UNKNOWN_SHA256
from training.cards.card import fill_page, titled_table, with_section
from training.confidence.again import (
    copy_the_rest,
    measured_again,
    refreshed,
    version_to_replace,
    with_step,
    write_again,
)
from training.datasets.splits import Dataset, Splits
from training.errors import ConfidenceError
from training.evaluation.classification import Readings, readings
from training.evaluation.evaluate import measure
from training.evaluation.metrics import calibration_error, negative_log_likelihood
from training.evaluation.temperature import best_temperature, tempered
from training.onnx_files import save_graph
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.temperature_scaling import TEMPERATURE, with_temperature, without_temperature
from training.versions import Target, staging

STEP = "python -m training calibrate"

TOLERANCE = 1e-5
"""Of a probability, between the graph, which divides the logits in float32, and the formula in float64."""


@dataclass(frozen=True)
class Figures:
    """On one set of images: the expected calibration error, and the negative log-likelihood in nats."""

    ece: float
    nll: float


def calibrate(
    name: str, splits: Splits, models_dir: Path, version: int | None = None, force: bool = False
) -> Path:
    """Publish the model again, in its own version, with the temperature that suits the validation images.

    version: None means the latest. force: replace the version, which must be asked for.
    The temperature has the least negative log-likelihood there; test images are only measured. It replaces
    an earlier one. Returns the folder.
    Raises SourceError, ConfidenceError, ExportError or EvaluationError, and then publishes nothing.
    """
    source, manifest = version_to_replace(
        name, splits, models_dir, version, force=force, what="a temperature"
    )
    sets = {"validation": splits.validation, "test": splits.test}
    plain = without_temperature(onnx.load(source / MODEL_FILE))
    before = {which: readings(plain, data) for which, data in sets.items()}
    temperature = best_temperature(before["validation"].probabilities, splits.validation.labels)
    temperature = float(f"{temperature:.4g}")
    made = with_temperature(plain, temperature)
    after = {which: readings(made, data) for which, data in sets.items()}
    for which, seen in before.items():
        _check(seen, after[which], temperature)
    draft = manifest.model_copy(
        update={
            "sha256": UNKNOWN_SHA256,
            "metrics": manifest.metrics | {TEMPERATURE: temperature},
            "command": with_step(manifest.command, STEP),
        }
    )
    figures = {
        (which, when): _figures(seen[which], data)
        for which, data in sets.items()
        for when, seen in (("without", before), ("with", after))
    }
    with staging([name], Target(models_dir, manifest.version, force=True)) as (staged,):
        copy_the_rest(source, staged)
        describe_graph(made, draft, commit())
        save_graph(made, staged / MODEL_FILE)
        finished = measured_again(draft, staged, measure(draft, staged, splits, models_dir))
        page = with_section(refreshed(read_info(source).card, finished), _words(temperature, figures))
        write_again(source, staged, finished, page, models_dir)
    for (which, when), each in figures.items():
        print(f"{which} images, {when} the temperature: ECE {each.ece:.4f}, NLL {each.nll:.4f} nats")
    return source


def _check(before: Readings, after: Readings, temperature: float) -> None:
    """Raise ConfidenceError unless the graph computes what temperature scaling is."""
    expected = tempered(before.probabilities, temperature)
    difference = float(np.abs(expected - after.probabilities).max())
    if not difference <= TOLERANCE:
        raise ConfidenceError(
            f"probabilities at temperature {temperature} differ by {difference:.3g} from the formula, "
            f"expected at most {TOLERANCE:g}"
        )


def _figures(seen: Readings, data: Dataset) -> Figures:
    return Figures(
        calibration_error(seen.probabilities, data.labels),
        negative_log_likelihood(seen.probabilities, data.labels),
    )


def _words(temperature: float, figures: Mapping[tuple[str, str], Figures]) -> str:
    rows = [(*which, f"{each.ece:.4f}", f"{each.nll:.4f}") for which, each in figures.items()]
    heads = ("images", "temperature", "ECE", "NLL, nats")
    return fill_page("temperature", temperature=temperature, figures=titled_table(heads, rows))
