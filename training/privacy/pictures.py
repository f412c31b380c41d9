"""The two pictures of a privacy study: accuracy against epsilon, and the curves of the attacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from training.figures import new_figure, save_figure
from training.privacy.attack import Curve
from training.privacy.plan import Level

LOWEST_RATE = 1e-3


def plot_accuracy(accuracies: Sequence[tuple[Level, Sequence[float]]], path: Path) -> None:
    """Draw each run's accuracy, and the line through the means, against epsilon on a logarithmic axis."""
    figure, axis = new_figure(figsize=(5.5, 3.6))
    private = sorted((level.epsilon, values) for level, values in accuracies if level.epsilon is not None)
    for level, values in accuracies:
        if level.epsilon is None:
            mean = 100 * sum(values) / len(values)
            axis.axhline(mean, color="grey", linestyle="--", label=f"no privacy: {mean:.2f} %")
    epsilons = [epsilon for epsilon, _ in private]
    axis.plot(epsilons, [100 * sum(values) / len(values) for _, values in private], "-", label="DP-SGD, mean")
    for epsilon, values in private:
        axis.plot([epsilon] * len(values), [100 * each for each in values], "o", color="tab:blue")
    axis.set_xscale("log")
    axis.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axis.minorticks_off()
    axis.set(xlabel="epsilon", ylabel="accuracy on test images, %")
    axis.legend()
    save_figure(figure, path)


def plot_attacks(curves: Sequence[tuple[Level, Mapping[str, Curve]]], path: Path) -> None:
    """Draw each attack's curves on logarithmic axes, one panel per attack and one line per level."""
    names = list(curves[0][1])
    figure, axes = new_figure(1, len(names), figsize=(4.6 * len(names), 4.2), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for level, of_level in curves:
            seen = of_level[name]
            label = f"{level}: AUC {seen.area:.3f}"
            axis.plot(seen.false_positives, seen.true_positives, label=label, linewidth=1.3)
        axis.plot([LOWEST_RATE, 1], [LOWEST_RATE, 1], color="grey", linestyle=":", label="guessing")
        axis.set(xscale="log", yscale="log", xlim=(LOWEST_RATE, 1), ylim=(LOWEST_RATE, 1), title=name)
        axis.set(xlabel="rate of false positives")
        axis.legend(fontsize="small")
    axes[0].set_ylabel("rate of true positives")
    save_figure(figure, path)
