"""Trains, publishes and measures models.

`parser` lists the commands. Each reads its arguments and calls one function.

A model family is a module with a configuration for each of its models, and two functions:
`train(config, splits, run)` and `export(name, run_dir, splits, target)`. Only `train`, `tune`, `private`
and `export` load torch; the others work on images and ONNX files.
"""

import argparse
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from service.errors import RepositoryError
from training.arguments import build_parser
from training.datasets.fetch import fetch
from training.datasets.splits import load
from training.errors import ArgumentError, PrivacyError, TrainingError, TuningError
from training.hyperparameters import configured, idle
from training.versions import Target

# Each model's module, and the name of its configuration there.
MODELS = {
    "mlp": ("training.families.classifier", "MLP"),
    "cnn": ("training.families.classifier", "CNN"),
    "cnn-pruned": ("training.families.classifier", "CNN_PRUNED"),
    "vit": ("training.families.classifier", "VIT"),
    "judge": ("training.families.classifier", "JUDGE"),
    "private": ("training.privacy.family", "CONFIG"),
    "gan": ("training.families.gan", "CONFIG"),
    "vae": ("training.families.vae", "CONFIG"),
    "flow": ("training.families.flow", "CONFIG"),
    "flow-distilled": ("training.families.flow", "DISTILLED"),
    "text": ("training.families.text", "CONFIG"),
}


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; `run` of the parsed options is the chosen command."""
    commands = {
        "data": _data,
        "train": _train,
        "tune": _tune,
        "private": _private,
        "export": _export,
        "import": _import,
        "quantize": _quantize,
        "convert": _convert,
        "confidence": _confidence,
        "calibrate": _calibrate,
        "ensemble": _ensemble,
        "gradient": _gradient,
        "compare": _compare,
        "evaluate": _evaluate,
        "default": _default,
        "robustness": _robustness,
        "outliers": _outliers,
        "draws": _draws,
        "pareto": _pareto,
        "explain": _explain,
        "sign": _sign,
    }
    return build_parser((__doc__ or "").splitlines()[0], commands, list(MODELS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 2 for wrong input, 1 for a failure.

    Either comes with one line on stderr.
    """
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (TrainingError, RepositoryError) as error:
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a read-only folder
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        return 1
    return status


def _in_one_line(error: Exception) -> str:
    """Return an error's message; those of onnxruntime and onnx in it may have several lines."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _data(options: argparse.Namespace) -> int:
    fetch(options.data_dir)
    splits = load(options.data_dir)
    print(
        f"{options.data_dir}: {splits.name}, {len(splits.train)} training, "
        f"{len(splits.validation)} validation and {len(splits.test)} test images, digest {splits.digest}"
    )
    return 0


def _train(options: argparse.Namespace) -> int:
    module, config = family_of(options.model, options.set or [])
    if options.epochs is not None:
        config = dataclasses.replace(config, epochs=options.epochs)
    if options.precision is not None:
        config = dataclasses.replace(config, precision=options.precision)
    splits = load(options.data_dir)
    _limit_threads(options.threads)
    from training.runs.inputs import record_of
    from training.runs.run import Run

    run = Run(
        options.run_dir or Path("runs") / options.model,
        record_of(options.model, splits.digest, config),
        epochs=config.epochs,
        seed=options.seed,
        device=options.device,
        precision=config.precision,
        resume=options.resume,
        loggers=options.logger or ["csv"],
        cuda_graphs=options.cuda_graphs,
    )
    module.train(config, splits, run)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from training.tuning.space import space_of

    fixed = tuple(options.set or [])
    space = space_of(options.model)
    _, config = family_of(options.model, fixed)
    space = space.without({change.partition("=")[0] for change in fixed} | idle(config).keys())
    if not space.fields:
        raise ArgumentError(
            "--set leaves nothing to search: each hyperparameter of the space is fixed or has no effect"
        )
    try:
        from training.tuning.plan import Plan
        from training.tuning.tune import cores, tune
    except ImportError as error:
        raise TuningError(f"tuning needs the extra `tuning`: {error}") from error
    splits = load(options.data_dir)
    if space.metric == "validation_distance":
        from training.evaluation.epochs import epoch_quality

        if epoch_quality(config.judge, splits) is None:
            raise TuningError(
                f"{options.model} logs no {space.metric} without a judge: give --set judge=FOLDER"
            )
    plan = Plan(
        model=options.model,
        family=MODELS[options.model][0],
        config=dataclasses.replace(config, epochs=options.epochs),
        fixed=fixed,
        space=space,
        folder=options.study_dir or Path("runs") / f"tune-{options.model}",
        data_dir=options.data_dir,
        data_digest=splits.digest,
        trials=options.trials,
        seed=options.seed,
        device=options.device,
    )
    tune(plan, options.workers or cores())
    return 0


def _private(options: argparse.Namespace) -> int:
    _, config = family_of("private", options.set or [])
    if options.epochs is not None:
        config = dataclasses.replace(config, epochs=options.epochs)
    splits = load(options.data_dir)
    _limit_threads(options.threads)
    try:
        from training.privacy.plan import Plan
        from training.privacy.study import study
    except ImportError as error:
        raise PrivacyError(f"private training needs the extra `privacy`: {error}") from error
    plan = Plan(
        config=config,
        epsilons=tuple(options.epsilon or (1.0, 3.0, 8.0)),
        seeds=options.seeds,
        pool=options.pool,
        models=options.models,
        attacked_epochs=options.attacked_epochs,
        attacked_batch_size=options.attacked_batch_size,
        folder=options.study_dir,
        data_digest=splits.digest,
        device=options.device,
    )
    study(plan, splits)
    return 0


def _sign(options: argparse.Namespace) -> int:
    from training.signing import sign

    for folder in options.folders:
        print(f"signed: {sign(folder, options.key)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    module, _ = family_of(options.model, [])
    target = Target(options.models_dir, options.version, options.force, options.weights)
    from training.runs.finished import check_data, check_model

    run_dir, splits = options.run_dir or Path("runs") / options.model, load(options.data_dir)
    check_model(run_dir, options.model)
    check_data(run_dir, splits)
    module.export(options.model, run_dir, splits, target)
    return 0


def _import(options: argparse.Namespace) -> int:
    from training.imports.imported import Options, import_network
    from training.imports.tensors import import_tensors

    names = [each.name for each in dataclasses.fields(Options)]
    chosen = Options(**{name: getattr(options, name) for name in names})
    target = Target(options.models_dir, options.version, options.force)
    if options.task == "classification":
        if options.axis:
            raise ArgumentError("--axis is given, expected it only with --task inference")
        import_network(options.network, options.model, target, chosen)
        return 0
    unread = [name for name in names if name != "shape" and getattr(chosen, name) != getattr(Options(), name)]
    if unread:
        raise ArgumentError(
            f"--{unread[0]} is given, expected it only for classifiers, without --task inference"
        )
    import_tensors(options.network, options.model, target, options.shape, dict(options.axis))
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


def _convert(options: argparse.Namespace) -> int:
    from training.quantization.convert import convert

    convert(
        options.model,
        load(options.data_dir),
        options.outliers_dir,
        options.models_dir,
        options.version,
        options.allow_loss,
        options.force,
    )
    return 0


def _confidence(options: argparse.Namespace) -> int:
    from training.confidence.confidence import confidence

    confidence(
        options.model,
        load(options.data_dir),
        load(options.outliers_dir),
        options.models_dir,
        options.version,
        options.fitted_images,
        options.force,
    )
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from training.confidence.calibrate import calibrate

    calibrate(options.model, load(options.data_dir), options.models_dir, options.version, options.force)
    return 0


def _ensemble(options: argparse.Namespace) -> int:
    from training.ensembles.ensemble import ensemble

    target = Target(options.models_dir, options.version, options.force)
    ensemble(options.name, options.members, load(options.data_dir), target)
    return 0


def _gradient(options: argparse.Namespace) -> int:
    from training.gradients.gradient import gradient

    gradient(options.model, load(options.data_dir), options.models_dir, options.version, options.force)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from training.evaluation.compare import compare

    compare(options.first, options.second, load(options.data_dir), options.on)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from training.evaluation.evaluate import evaluate

    outliers = None if options.outliers_dir is None else load(options.outliers_dir).test
    return 0 if evaluate(options.models, options.models_dir, load(options.data_dir), outliers) else 1


def _default(options: argparse.Namespace) -> int:
    from training.default import make_default

    for folder in make_default(options.model, options.models_dir):
        print(folder)
    return 0


def _robustness(options: argparse.Namespace) -> int:
    from training.reports.robustness import robustness

    splits = load(options.data_dir)
    robustness(options.models, options.models_dir, splits, options.on, options.output, options.cards)
    return 0


def _draws(options: argparse.Namespace) -> int:
    from training.reports.draws import draws

    splits = load(options.data_dir)
    draws(options.models, options.models_dir, splits, options.on, options.draws, options.output)
    return 0


def _outliers(options: argparse.Namespace) -> int:
    from training.reports.outliers import report

    splits, fashion = load(options.data_dir), load(options.outliers_dir)
    report(options.models, options.models_dir, splits, fashion, options.output_dir)
    return 0


def _pareto(options: argparse.Namespace) -> int:
    from training.reports.pareto import pareto

    pareto(options.models, options.models_dir, load(options.data_dir), options.output_dir)
    return 0


def _explain(options: argparse.Namespace) -> int:
    from training.reports.explanations import explain

    explain(
        options.model,
        options.models_dir,
        load(options.data_dir),
        options.on,
        options.output_dir,
        options.digits,
        options.randomised_digits,
    )
    return 0


def family_of(model: str, changes: Sequence[str]) -> tuple[ModuleType, Any]:
    """The model's module, and its configuration with the `NAME=VALUE` changes made to it.

    Raises ArgumentError for a change that `training.hyperparameters.configured` refuses.
    """
    module_name, config_name = MODELS[model]
    module = importlib.import_module(module_name)
    return module, configured(model, getattr(module, config_name), changes)


def _limit_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(threads)  # else Fabric sets another number for several processes
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
