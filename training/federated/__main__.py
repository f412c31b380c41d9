"""The command `python -m training.federated`: trains with each algorithm on each split, and reports.

Needs the environment that `make federated` makes.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from training.datasets.splits import Splits, load
from training.errors import ArgumentError, TrainingError
from training.federated.local import accuracy
from training.federated.plan import Algorithm, History, Setting, read_history, write_history
from training.federated.report import report
from training.federated.splits import Split, clients_rows
from training.terminal import notice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for wrong input, with one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        splits = load(options.data_dir)
        options.folder.mkdir(parents=True, exist_ok=True)
        pairs = itertools.product(
            options.algorithm or ["fedavg", "fedprox"], options.split or get_args(Split)
        )
        report(options.folder, [_history(options, *pair, splits) for pair in pairs])
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _history(options: argparse.Namespace, algorithm: Algorithm, split: Split, splits: Splits) -> History:
    """A setting's history, from the folder if it is there already."""
    setting = Setting(
        algorithm=algorithm,
        split=split,
        clients=options.clients,
        rounds=options.rounds,
        participation=options.participation,
        local_epochs=options.local_epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        proximal=options.proximal,
        clip_norm=options.clip_norm,
        noise_multiplier=options.noise_multiplier,
        seed=options.seed,
        data_dir=str(options.data_dir.resolve()),
    )
    clients_rows(splits.train.labels, setting.clients, split, setting.seed)  # raises early
    done = read_history(options.folder, setting)
    if done is not None:
        notice(f"{setting.name} is done")
        return done
    notice(f"{setting.name}: {setting.rounds} rounds")
    _prepare_environment()
    from training.federated.flower import simulate

    started = time.monotonic()
    accuracies, weights = simulate(setting, splits)
    epsilon, delta = _spent(setting)
    history = History(
        setting=setting,
        accuracies=accuracies,
        test_accuracy=accuracy(weights, splits.test),
        epsilon=epsilon,
        delta=delta,
        seconds=round(time.monotonic() - started, 1),
    )
    write_history(options.folder, history)
    return history


def _prepare_environment() -> None:
    """Set what Flower and Ray read when they are imported, and pass on to their processes."""
    for name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):  # they would report to their makers
        os.environ.setdefault(name, "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one client per core
    # Ray's processes find the project as this one does.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])


def _spent(setting: Setting) -> tuple[float | None, float | None]:
    """The guarantee for each client: epsilon, and the delta of a tenth of a client."""
    if setting.algorithm != "dp-fedavg":
        return None, None
    from training.privacy.accounting import epsilon_of

    delta = 0.1 / setting.clients
    steps = [(setting.noise_multiplier, setting.participation, setting.rounds)]
    return epsilon_of(steps, delta, "rdp"), delta


def _check(options: argparse.Namespace) -> None:
    for name in ("clients", "rounds", "local_epochs", "batch_size"):
        if getattr(options, name) < 1:
            raise ArgumentError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected 1 or more")
    for name in ("learning_rate", "clip_norm", "noise_multiplier"):
        if not getattr(options, name) > 0:
            raise ArgumentError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, expected more than 0"
            )
    if not 0 < options.participation <= 1:
        raise ArgumentError(f"--participation is {options.participation}, expected more than 0 and at most 1")
    if options.proximal < 0:
        raise ArgumentError(f"--proximal is {options.proximal}, expected 0 or more")


def _parser() -> argparse.ArgumentParser:
    about = (
        "Train a small network on simulated clients with Flower, and draw its accuracy by round. The same "
        "command again trains only what is missing."
    )
    parser = argparse.ArgumentParser(prog="python -m training.federated", description=about)
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/federated"), help="of the report (default: %(default)s)")
    add("--data-dir", type=Path, default=Path("data/mnist"), help="of the IDX files (default: %(default)s)")
    add(
        "--algorithm",
        action="append",
        choices=get_args(Algorithm),
        help="may be repeated (default: fedavg and fedprox)",
    )
    add(
        "--split",
        action="append",
        choices=get_args(Split),
        help="how the images are dealt to the clients; may be repeated (default: both)",
    )
    add("--clients", type=int, default=10, help="number of clients (default: %(default)s)")
    add("--rounds", type=int, default=25, help="number of rounds (default: %(default)s)")
    add(
        "--participation",
        type=float,
        default=1.0,
        help="share of the clients that train in a round; with dp-fedavg each one's probability (default: 1)",
    )
    add("--local-epochs", type=int, default=1, help="epochs of a client per round (default: %(default)s)")
    add("--batch-size", type=int, default=50, help="of a client (default: %(default)s)")
    add("--learning-rate", type=float, default=0.1, help="of a client (default: %(default)s)")
    add("--proximal", type=float, default=0.1, help="mu of fedprox (default: %(default)s)")
    add("--clip-norm", type=float, default=1.0, help="of a client's update, dp-fedavg (default: %(default)s)")
    add(
        "--noise-multiplier",
        type=float,
        default=1.0,
        help="standard deviation of the noise in clip norms, dp-fedavg (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of the split, the weights and the order (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
