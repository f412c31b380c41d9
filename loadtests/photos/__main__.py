"""Count the photos of handwritten digits that a classifier reads, in eight situations.

    python -m loadtests.photos

Requires MNIST in data/mnist (`make data`). Prints a table, and exits with 1 if a situation misses a bar;
`--contact-sheet FILE` draws examples instead.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from loadtests.machine import ROOT
from loadtests.photos.scenes import SITUATIONS, photo
from loadtests.progress import doing, say
from service.content.digits import digit_from_picture
from service.errors import InvalidInput
from service.models.folder import latest_version
from service.models.manifest import MODEL_FILE
from training.datasets.splits import Dataset, load

SURE = 0.9
LEAST_NOT_WRONG = 0.95
"""The bar for the fraction of photos that are right or rejected."""
MOST_SURELY_WRONG = 0.02
"""The bar for the fraction of photos that are wrong with a probability of SURE or more."""
COLUMNS = ("right", "rejected", "wrong", "surely wrong")
THUMBNAIL = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 1 if a situation misses a bar."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.photos", description=__doc__)
    parser.add_argument("--digits", type=int, default=500, help="digits per situation (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the photos (default: 1)")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "mnist", help="MNIST's folder")
    parser.add_argument("--model", default="cnn-pruned", help="a classifier in models/ (default: cnn-pruned)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw examples into a PNG")
    parsed = parser.parse_args(arguments)
    test = load(parsed.data).test
    if parsed.contact_sheet:
        contact_sheet(test, parsed.seed).quantize(24).save(parsed.contact_sheet, optimize=True)
        return 0
    session = open_session(latest_version(ROOT / "models" / parsed.model) / MODEL_FILE)
    print(f"| situation | {' | '.join(COLUMNS)} | CPU ms, median |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    missed = []
    for situation in SITUATIONS:
        with doing(situation):
            counts, seconds = measure(test, situation, parsed.digits, parsed.seed, session)
        shares = " | ".join(f"{100 * counts[column] / parsed.digits:.1f} %" for column in COLUMNS)
        print(f"| {situation} | {shares} | {1000 * float(np.median(seconds)):.1f} |", flush=True)
        missed += [f"{situation}: {bar}" for bar in missed_bars(counts)]
    for each in missed:
        say(each)
    return int(bool(missed))


def missed_bars(counts: Counter[str]) -> list[str]:
    """Describe each bar that a situation's outcomes miss: what was seen, and what was expected."""
    surely = counts["surely wrong"] / counts.total()
    fine = (counts["right"] + counts["rejected"]) / counts.total()
    missed = []
    if fine < LEAST_NOT_WRONG:
        missed.append(f"{fine:.1%} are right or rejected, expected at least {LEAST_NOT_WRONG:.0%}")
    if surely > MOST_SURELY_WRONG:
        missed.append(f"{surely:.1%} are surely wrong, expected at most {MOST_SURELY_WRONG:.0%}")
    return missed


def open_session(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # two threads for one image wait for each other
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def chosen(test: Dataset, count: int, seed: int) -> NDArray[np.int64]:
    """Draw the digits: the same for every situation."""
    return np.random.default_rng(seed).choice(len(test), count, replace=False)


def measure(
    test: Dataset, situation: str, count: int, seed: int, session: ort.InferenceSession
) -> tuple[Counter[str], list[float]]:
    """Return how often each outcome was seen, and the CPU seconds of each picture's preprocessing."""
    outcomes: Counter[str] = Counter()
    seconds = []
    for index in chosen(test, count, seed):
        picture = photo(test.images[index], situation, int(seed * 100_000 + index))
        start = time.thread_time()
        try:
            digit = digit_from_picture(picture)
        except InvalidInput:
            digit = None
        seconds.append(time.thread_time() - start)
        outcomes[_outcome(digit, int(test.labels[index]), session)] += 1
    return outcomes, seconds


def _outcome(digit: NDArray[np.uint8] | None, label: int, session: ort.InferenceSession) -> str:
    if digit is None:
        return "rejected"
    probabilities = session.run(None, {session.get_inputs()[0].name: digit[None]})[0][0]
    if int(probabilities.argmax()) == label:
        return "right"
    return "surely wrong" if probabilities.max() >= SURE else "wrong"


def contact_sheet(test: Dataset, seed: int, columns: int = 6) -> Image.Image:
    """Draw one line of photos per situation, each with the digit that was found in it, or grey."""
    indices = chosen(test, columns, seed)
    sheet = Image.new("L", (columns * (THUMBNAIL + 64), len(SITUATIONS) * (THUMBNAIL + 6)), 255)
    for line, situation in enumerate(SITUATIONS):
        for column, index in enumerate(indices):
            picture = photo(test.images[index], situation, int(seed * 100_000 + index))
            try:
                digit = Image.fromarray(digit_from_picture(picture)).resize((56, 56))
            except InvalidInput:
                digit = Image.new("L", (56, 56), 160)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            corner = (column * (THUMBNAIL + 64), line * (THUMBNAIL + 6))
            sheet.paste(picture, corner)
            sheet.paste(digit, (corner[0] + picture.width + 2, corner[1]))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
