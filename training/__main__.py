"""Commands: data, train, export, quantize, evaluate. Reads arguments, calls one function, prints its errors.

Every model family is a module with the same three functions, and a configuration for each model:
`train(config, splits, run)`, `export(name, run_dir, splits, target)`, and what evaluate.py calls.
torch is imported only by the commands that need it.
"""

import argparse
import dataclasses
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from training.data.splits import DataError, fetch, load

# The model's module, and the name of its configuration there.
MODELS = {
    "mlp": ("training.families.classifier", "MLP"),
    "cnn": ("training.families.classifier", "CNN"),
    "gan": ("training.families.gan", "CONFIG"),
    "vae": ("training.families.vae", "CONFIG"),
}


class ArgumentError(Exception):
    """An argument that argparse alone cannot judge."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 2 for wrong input, with one line on stderr."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except _input_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _input_errors() -> tuple[type[Exception], ...]:
    """The errors that mean wrong input; those of modules that were never imported cannot occur."""
    errors: list[type[Exception]] = [ArgumentError, DataError]
    later = (
        ("training.runs.run", "RunError"),
        ("training.export.publish", "ExportError"),
        ("training.evaluation.evaluate", "EvaluationError"),
        ("training.quantization.quantize", "QuantizationError"),
        ("service.errors", "ManifestError"),
    )
    for module, name in later:
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _data(options: argparse.Namespace) -> int:
    fetch(options.data_dir)
    splits = load(options.data_dir)
    print(
        f"{options.data_dir}: {splits.name}, {len(splits.train)} training, "
        f"{len(splits.validation)} validation and {len(splits.test)} test images, digest {splits.digest}"
    )
    return 0


def _train(options: argparse.Namespace) -> int:
    module, config = _family(options.model, options.set or [])
    if options.epochs is not None:
        config = dataclasses.replace(config, epochs=options.epochs)
    if options.precision is not None:
        config = dataclasses.replace(config, precision=options.precision)
    splits = load(options.data_dir)
    _limit_threads(options.threads)
    from training.runs.run import Run

    run = Run(
        options.run_dir or Path("runs") / options.model,
        {"model": options.model, "data_digest": splits.digest} | dataclasses.asdict(config),
        epochs=config.epochs,
        seed=options.seed,
        device=options.device,
        precision=config.precision,
        resume=options.resume,
    )
    module.train(config, splits, run)
    return 0


def _export(options: argparse.Namespace) -> int:
    module, _ = _family(options.model, [])
    from training.export.publish import Target

    target = Target(options.models_dir, options.version, options.force)
    run_dir = options.run_dir or Path("runs") / options.model
    module.export(options.model, run_dir, load(options.data_dir), target)
    return 0


def _quantize(options: argparse.Namespace) -> int:
    from training.quantization.quantize import quantize

    quantize(
        options.model,
        load(options.data_dir),
        options.models_dir,
        options.version,
        options.calibration_images,
        options.allow_loss,
        options.force,
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from training.evaluation.evaluate import evaluate

    return 0 if evaluate(options.models, options.models_dir, load(options.data_dir)) else 1


def _family(model: str, changes: Sequence[str]) -> tuple[ModuleType, Any]:
    """The model's module, and its configuration with the `NAME=VALUE` changes made to it."""
    module_name, config_name = MODELS[model]
    module = importlib.import_module(module_name)
    config = getattr(module, config_name)
    for change in changes:
        name, _, text = change.partition("=")
        if name not in {field.name for field in dataclasses.fields(config)}:
            names = ", ".join(field.name for field in dataclasses.fields(config))
            raise ArgumentError(f"--set {change}: {model} has no hyperparameter {name!r}, it has {names}")
        kind = type(getattr(config, name))
        try:
            config = dataclasses.replace(config, **{name: kind(text)})
        except ValueError:
            raise ArgumentError(f"--set {change}: {text!r} is not of type {kind.__name__}") from None
    return module, config


def _limit_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands)
    _add_train(commands)
    _add_export(commands)
    _add_quantize(commands)
    _add_evaluate(commands)
    return parser


def _add(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data/mnist"), help="folder of the four IDX files"
    )
    return parser


def _add_data(commands: Any) -> None:
    _add(commands, "data", _data, "Fetch MNIST and verify it; files that are already right are kept.")


def _add_train(commands: Any) -> None:
    about = "Train a model. Run it under torchrun --nproc-per-node N -m training train ... for N processes."
    parser = _add(commands, "train", _train, about)
    parser.add_argument("model", choices=sorted(MODELS), help="what to train")
    parser.add_argument(
        "--run-dir", type=Path, help="folder of checkpoints, metrics and curves; None is runs/MODEL"
    )
    parser.add_argument("--epochs", type=_positive, help="None is the model's own number")
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed"],
        help="arithmetic of training; None is the model's own choice. Exported models are always 32 bits",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto prefers cuda")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument(
        "--threads", type=_positive, help="CPU threads; None is torch's choice. It changes the last bits"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --run-dir after its last finished epoch, or begin it if there is none",
    )
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="change a hyperparameter; may be repeated"
    )


def _add_export(commands: Any) -> None:
    about = "Publish a run's best weights as models/MODEL/VERSION, once the graph is checked and measured."
    parser = _add(commands, "export", _export, about)
    parser.add_argument("model", choices=sorted(MODELS), help="what to export")
    parser.add_argument("--run-dir", type=Path, help="folder of the run; None is runs/MODEL")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="the model repository")
    parser.add_argument("--version", type=_positive, help="None is the next free one")
    parser.add_argument("--force", action="store_true", help="replace the version if it is there")


def _add_quantize(commands: Any) -> None:
    about = (
        "Publish a classifier's int8 version as models/MODEL-int8/VERSION, calibrated on training images, "
        "once its loss of accuracy is measured."
    )
    parser = _add(commands, "quantize", _quantize, about)
    parser.add_argument("model", help="a published classifier, such as mlp")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="the model repository")
    parser.add_argument("--version", type=_positive, help="the version to quantise; None is the latest")
    parser.add_argument(
        "--calibration-images", type=_positive, default=500, help="training images that give the scales"
    )
    parser.add_argument(
        "--allow-loss", type=float, default=0.10, metavar="POINTS", help="of accuracy on the test set, of 100"
    )
    parser.add_argument("--force", action="store_true", help="replace the int8 version if it is there")


def _add_evaluate(commands: Any) -> None:
    about = (
        "Measure every metric of the manifests again, from the ONNX files alone, on the test set; "
        "exit status 1 if one differs by more than the tolerance."
    )
    parser = _add(commands, "evaluate", _evaluate, about)
    parser.add_argument("models", nargs="*", help="names of models; none means all")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="the model repository")


if __name__ == "__main__":
    sys.exit(main())
