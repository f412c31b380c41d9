"""How a run reports its progress in a terminal or a log. Knows nothing of checkpoints or models."""

import re
from collections.abc import Mapping

# The end of the names of metrics that there is one of for each class: validation_recall_0, ...
NUMBERED = re.compile(r"_\d+$")


def summary(metrics: Mapping[str, float]) -> str:
    """An epoch's metrics on one line; of numbered ones only the lowest, such as the worst class's recall.

    >>> summary({"epoch": 1, "recall_0": 0.75, "recall_1": 0.5, "seconds": 2.0})
    'epoch 1  recall_1 0.5 (lowest of 2)  seconds 2'
    """
    families: dict[str, list[str]] = {}
    for name in metrics:
        families.setdefault(NUMBERED.sub("", name), []).append(name)
    return "  ".join(_lowest(names, metrics) for names in families.values())


def _lowest(names: list[str], metrics: Mapping[str, float]) -> str:
    name = min(names, key=lambda each: metrics[each])
    shown = f"{name} {metrics[name]:.5g}"
    return shown if len(names) == 1 else f"{shown} (lowest of {len(names)})"
