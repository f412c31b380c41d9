"""What the federated trainings reached: a table on stdout, report.md, and a picture of accuracy by round."""

from collections.abc import Sequence
from pathlib import Path

from training.federated.plan import History
from training.figures import new_figure, save_figure
from training.files import write_atomically

PAGE_FILE = "report.md"
PICTURE_FILE = "accuracy.png"

COLUMNS = ("algorithm", "split", "clients", "per round", "rounds", "validation", "test", "epsilon", "time")

# The rounds over which the last accuracies are averaged, because single ones jump on a split by label.
LAST_ROUNDS = 5


def report(folder: Path, histories: Sequence[History]) -> None:
    """Write the files into the folder, and print the table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(each) for each in histories)]
    page = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    write_atomically(folder / PAGE_FILE, f"{page}\n\n![accuracy by round]({PICTURE_FILE})\n".encode())
    plot(histories, folder / PICTURE_FILE)
    print(page)


def _row(history: History) -> tuple[str, ...]:
    setting, last = history.setting, history.accuracies[-LAST_ROUNDS:]
    return (
        setting.algorithm,
        setting.split,
        f"{setting.clients:,}",
        f"{setting.participation:.0%}",
        str(setting.rounds),
        f"{sum(last) / len(last):.2%}",
        f"{history.test_accuracy:.2%}",
        "" if history.epsilon is None else f"{history.epsilon:.1f} at delta {history.delta:g}",
        f"{history.seconds:.0f} s",
    )


def plot(histories: Sequence[History], path: Path) -> None:
    """Draw each history's accuracy on the validation images after each round."""
    figure, axis = new_figure(figsize=(6.5, 4))
    for history in histories:
        values = [100 * each for each in history.accuracies]
        style = "-" if history.setting.split == "iid" else "--"
        label = f"{history.setting.algorithm}, {history.setting.split}, {history.setting.clients:,} clients"
        axis.plot(range(len(values)), values, style, label=label)
    axis.set(xlabel="round", ylabel="accuracy on validation images, %")
    axis.locator_params(axis="x", integer=True)
    axis.legend(fontsize="small")
    save_figure(figure, path)
