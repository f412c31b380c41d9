"""The command `python -m loadtests.forms`: draw docs/forms.png, requests per second by number of processes.

The figures are those of loadtests/results/forms.json, which were measured on a GPU; docs/performance.md tells
which form to choose by them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from loadtests.machine import ROOT
from loadtests.outputs import replacing

RESULTS = ROOT / "loadtests" / "results" / "forms.json"
PICTURE = ROOT / "docs" / "forms.png"
STYLES = ("D", "o-", "s-", "^--")


@dataclass(frozen=True)
class Forms:
    """What was measured. rates: requests per second by the form of the service and its processes."""

    machine: str
    commit: str
    load: str
    rates: Mapping[str, Mapping[int, int]]


def read(path: Path = RESULTS) -> Forms:
    """Read the figures."""
    content = json.loads(path.read_text())
    rates = {
        form: {int(count): rate for count, rate in seen.items()}
        for form, seen in content["requests_per_second"].items()
    }
    return Forms(content["machine"], content["commit"], content["load"], rates)


def table(forms: Forms) -> str:
    """The figures in Markdown: a row for each form, a column for each number of processes."""
    counts = sorted({count for seen in forms.rates.values() for count in seen})
    rows = [
        f"| {form} | {' | '.join(f'{seen[count]:,}' if count in seen else '' for count in counts)} |"
        for form, seen in forms.rates.items()
    ]
    head = f"| services or workers | {' | '.join(map(str, counts))} |"
    return "\n".join([head, "|---" * (len(counts) + 1) + "|", *rows])


def draw(forms: Forms, path: Path) -> None:
    """Draw requests per second by the number of processes, a line for each form."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for (form, seen), style in zip(forms.rates.items(), STYLES, strict=True):
        axis.plot([*seen], [rate / 1000 for rate in seen.values()], style, label=form)
    axis.set_xticks([1, 2, 4, 8])
    axis.set_xlabel("services or workers")
    axis.set_ylabel("thousand requests per second")
    axis.set_ylim(bottom=0)
    axis.set_title(f"{forms.load}: {forms.machine}, commit {forms.commit}", fontsize="medium")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    """Run the command."""
    draw(read(), PICTURE)
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
