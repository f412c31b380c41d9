"""The command line: the commands, their arguments and help texts. Runs nothing."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from service.models.manifest import Preprocess

Command = Callable[[argparse.Namespace], int]


def build_parser(
    about: str, commands: Mapping[str, Command], models: Sequence[str]
) -> argparse.ArgumentParser:
    """The parser of the command line; `run` of the parsed options is the chosen command.

    about: the description. models: the names that `train` and `export` accept.
    """
    parser = argparse.ArgumentParser(prog="python -m training", description=about)
    actions = parser.add_subparsers(required=True, metavar="COMMAND")
    add = {"data": _add_data, "train": _add_train, "export": _add_export}
    add |= {"convert": _add_convert, "import": _add_import}
    add |= {"quantize": _add_quantize, "ensemble": _add_ensemble, "compare": _add_compare}
    add |= {"gradient": _add_gradient, "explain": _add_explain}
    add |= {"confidence": _add_confidence, "calibrate": _add_calibrate}
    add |= {"evaluate": _add_evaluate, "robustness": _add_robustness, "pareto": _add_pareto}
    add |= {"outliers": _add_outliers, "draws": _add_draws}
    add |= {"default": _add_default}
    add |= {"sign": _add_sign, "tune": _add_tune, "private": _add_private}
    for name, run in commands.items():
        command = add[name](actions)
        command.set_defaults(run=run)
        if name not in ("sign", "default", "import"):
            command.add_argument(
                "--data-dir",
                type=Path,
                default=Path("data/mnist"),
                help="folder of the four IDX files (default: %(default)s)",
            )
        if name in ("train", "export"):
            command.add_argument("model", choices=sorted(models), help=f"model to {name}")
    return parser


def _add(actions: Any, name: str, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = actions.add_parser(name, help=about, description=about)
    return command


def _add_data(actions: Any) -> argparse.ArgumentParser:
    return _add(actions, "data", "Fetch MNIST and verify it; correct files are kept.")


def _add_train(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Train a model. Run it under torchrun --nproc-per-node N -m training train ... for N processes. "
        "cnn-pruned begins with a published cnn and needs the extra `pruning`. flow-distilled is taught by a "
        "run of flow."
    )
    command = _add(actions, "train", about)
    command.add_argument(
        "--run-dir", type=Path, help="folder for checkpoints, metrics and curves (default: runs/MODEL)"
    )
    command.add_argument("--epochs", type=_positive, help="number of epochs (default: the model's own)")
    command.add_argument(
        "--logger",
        action="append",
        choices=["csv", "tensorboard"],
        help="also log the epochs' metrics in this format, to logs/ in the run's folder; may be repeated "
        "(default: csv). tensorboard needs the extra `tensorboard`",
    )
    command.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed"],
        help="arithmetic of training (default: the model's own). Exported models are always 32-bit",
    )
    command.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto (the default) prefers cuda"
    )
    command.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="replay training steps as CUDA graphs, if the model can and runs on one GPU (default: yes)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)"
    )
    command.add_argument(
        "--threads",
        type=_positive,
        help="number of CPU threads (default: torch's choice). It changes the last bits",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --run-dir after its last finished epoch, or start it if there is none",
    )
    command.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="change a hyperparameter; may be repeated"
    )
    return command


def _add_tune(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Search hyperparameters with short runs, judged on the validation images. Needs the extra `tuning`. "
        "The same command again continues the study."
    )
    command = _add(actions, "tune", about)
    command.add_argument("model", help="model to tune, such as mlp")
    command.add_argument(
        "--trials",
        type=_positive,
        default=20,
        help="number of finished trials that the study shall have (default: %(default)s)",
    )
    command.add_argument(
        "--epochs", type=_positive, default=4, help="number of epochs per trial (default: %(default)s)"
    )
    command.add_argument(
        "--workers",
        type=_positive,
        help="number of processes that train trials, on one thread each (default: one per CPU core)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed of the search and of every run (default: 0)"
    )
    command.add_argument("--study-dir", type=Path, help="folder of the study (default: runs/tune-MODEL)")
    command.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto (the default) prefers cuda"
    )
    command.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="fix a hyperparameter, which is then not searched; may be repeated",
    )
    return command


def _add_private(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Train a classifier privately (DP-SGD) at several epsilons and without privacy, and try to tell the "
        "training images from others. Needs the extra `privacy`. The same command again continues the study."
    )
    command = _add(actions, "private", about)
    command.add_argument(
        "--epsilon",
        action="append",
        type=_above_zero,
        help="privacy budget of a run; may be repeated (default: 1, 3 and 8)",
    )
    command.add_argument(
        "--seeds", type=_positive, default=1, help="number of runs per epsilon (default: %(default)s)"
    )
    command.add_argument("--epochs", type=_positive, help="number of epochs (default: the model's own)")
    command.add_argument(
        "--pool",
        type=_positive,
        default=2000,
        help="number of images; each attacked model is trained on half of them (default: %(default)s)",
    )
    command.add_argument(
        "--models",
        type=_positive,
        default=16,
        help="number of models per epsilon that are attacked (default: %(default)s)",
    )
    command.add_argument(
        "--attacked-epochs",
        type=_positive,
        default=40,
        help="number of epochs of the attacked models (default: %(default)s)",
    )
    command.add_argument(
        "--attacked-batch-size",
        type=_positive,
        default=200,
        help="expected batch size of the attacked models (default: %(default)s)",
    )
    command.add_argument(
        "--study-dir",
        type=Path,
        default=Path("runs/private-study"),
        help="folder of the study (default: %(default)s)",
    )
    command.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto (the default) prefers cuda"
    )
    command.add_argument(
        "--threads",
        type=_positive,
        help="number of CPU threads (default: torch's choice). It changes the last bits",
    )
    command.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="change a hyperparameter; may be repeated"
    )
    return command


def _add_export(actions: Any) -> argparse.ArgumentParser:
    about = "Publish a run's best weights as models/MODEL/VERSION, after the graph is checked and measured."
    command = _add(actions, "export", about)
    command.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/MODEL)")
    _add_models_dir(command)
    command.add_argument("--version", type=_positive, help="version to publish (default: the next free one)")
    command.add_argument(
        "--force",
        action="store_true",
        help="replace the version if it exists, and publish one that is much worse than the last",
    )
    command.add_argument(
        "--weights",
        action="store_true",
        help="put the run's weights next to the graph, as weights.safetensors, for further training",
    )
    return command


def _add_default(actions: Any) -> argparse.ArgumentParser:
    about = "Make a model the one that answers the requests of its task that name none."
    command = _add(actions, "default", about)
    command.add_argument("model", help="name of a published model")
    _add_models_dir(command)
    return command


def _add_quantize(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Publish a classifier's int8 version as models/MODEL-int8/VERSION, calibrated on training images, "
        "after its loss of accuracy is measured."
    )
    command = _add(actions, "quantize", about)
    _add_published(command, "mlp", "quantise")
    command.add_argument(
        "--calibration-images",
        type=_positive,
        default=500,
        help="number of training images that set the scales (default: %(default)s)",
    )
    _add_allowed_loss(command, 0.1, "int8")
    return command


def _add_import(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Publish a classifier that another program exported to ONNX, so that it takes pictures in batches of "
        "any size and gives probabilities. Labels, size and normalisation that no option gives are read from "
        "config.json and preprocessor_config.json beside it (transformers, timm), from its metadata "
        "(Ultralytics) or from its nodes (skl2onnx). With --task inference any network is published, and its "
        "tensors stay as they are. The command needs no data set."
    )
    command = _add(actions, "import", about)
    command.add_argument("network", type=Path, help="ONNX file; a classifier's has one input")
    command.add_argument("model", help="name of the model to publish")
    command.add_argument(
        "--task",
        choices=["classification", "inference"],
        default="classification",
        help="what the model is for (default: %(default)s); inference has no options of pictures and classes",
    )
    command.add_argument(
        "--axis",
        type=_size_of_axis,
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="size of a free axis that the graph names, such as sequence_length=128; with --task inference",
    )
    command.add_argument("--labels", type=Path, help="text file with the name of a class per line")
    command.add_argument(
        "--shape",
        type=_positive,
        nargs="+",
        help="sizes of a row as the network takes it, such as 3 224 224, if the graph leaves them free",
    )
    command.add_argument(
        "--scale", type=float, help="number that pixels, 0 to 255, are divided by (default: 255)"
    )
    command.add_argument(
        "--mean",
        type=float,
        nargs="+",
        help="numbers that are then subtracted, one for each channel in the network's order, or one for all "
        "(default: 0)",
    )
    command.add_argument(
        "--std",
        type=float,
        nargs="+",
        help="numbers that the differences are divided by, as many as in --mean or one (default: 1)",
    )
    command.add_argument(
        "--bgr", action="store_true", help="the network takes the channels in the order blue, green, red"
    )
    command.add_argument(
        "--preprocess",
        choices=get_args(Preprocess),
        help="how a picture gets the input's size, see docs/own-models.md (default: resize)",
    )
    command.add_argument(
        "--output", help="output with a number for each class (default: the first one that has the shape)"
    )
    command.add_argument(
        "--holds",
        choices=["logits", "probabilities"],
        help="kind of numbers in the output (default: judged by the numbers for random pictures)",
    )
    _add_models_dir(command)
    command.add_argument("--version", type=_positive, help="version to publish (default: the next free one)")
    command.add_argument("--force", action="store_true", help="replace the version if it exists")
    return command


def _size_of_axis(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected NAME=SIZE")
    return name, _positive(size)


def _add_convert(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Publish a classifier or a generator in float16, for GPUs, as models/MODEL-fp16/VERSION, after its "
        "loss of accuracy or the change of its images is measured. Inputs and outputs stay as they are."
    )
    command = _add(actions, "convert", about)
    _add_published(command, "cnn or gan", "convert", "classifier or generator")
    command.add_argument("--to", choices=["fp16"], required=True, help="datatype of weights and arithmetic")
    command.add_argument(
        "--outliers-dir",
        type=Path,
        default=Path("data/fashion-mnist"),
        help="folder of the four IDX files of Fashion-MNIST, for models with an ood_score "
        "(default: %(default)s)",
    )
    _add_allowed_loss(command, 0.02, "float16")
    return command


def _add_confidence(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Add to a published classifier an output that says how unlike its training images an image is, and "
        "the threshold above which its label is not to be believed. The weights stay."
    )
    command = _add(actions, "confidence", about)
    _add_published(command, "mlp", "change")
    command.add_argument(
        "--outliers-dir",
        type=Path,
        default=Path("data/fashion-mnist"),
        help="folder of the four IDX files of Fashion-MNIST, which shows no digits (default: %(default)s)",
    )
    command.add_argument(
        "--fitted-images",
        type=_positive,
        default=10_000,
        help="number of training images that the score is fitted to (default: %(default)s)",
    )
    command.add_argument("--force", action="store_true", help="replace the version, which exists")
    return command


def _add_calibrate(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Divide a published classifier's logits by the temperature that suits the validation images best, "
        "and measure its calibration before and after. The weights and the labels stay."
    )
    command = _add(actions, "calibrate", about)
    _add_published(command, "mlp", "change")
    command.add_argument("--force", action="store_true", help="replace the version, which exists")
    return command


def _add_ensemble(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Publish one graph that gives the mean of several classifiers' probabilities, as "
        "models/NAME/VERSION, and compare it with each of them."
    )
    command = _add(actions, "ensemble", about)
    command.add_argument("name", help="name of the ensemble, such as cnn-ensemble")
    command.add_argument(
        "members", nargs="+", type=Path, metavar="MEMBER", help="folder of a version, such as models/cnn/1"
    )
    _add_models_dir(command)
    command.add_argument("--version", type=_positive, help="version to publish (default: the next free one)")
    command.add_argument("--force", action="store_true", help="replace the version if it exists")
    return command


def _add_gradient(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Publish the graph of a classifier's gradient as models/MODEL-gradient/VERSION, for integrated "
        "gradients, after it is checked against differences of probabilities."
    )
    command = _add(actions, "gradient", about)
    _add_published(command, "cnn", "differentiate")
    command.add_argument("--force", action="store_true", help="replace the gradient's version if it exists")
    return command


def _add_compare(actions: Any) -> argparse.ArgumentParser:
    about = "Compare two classifiers on the same images by McNemar's exact test."
    command = _add(actions, "compare", about)
    for name in ("first", "second"):
        command.add_argument(name, type=Path, help="folder of a version, such as models/cnn/1")
    _add_on(command, "compare on")
    return command


def _add_evaluate(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Measure every metric of the manifests again, from the ONNX files alone, on the test set; "
        "exit status 1 if command differs by more than the tolerance."
    )
    command = _add(actions, "evaluate", about)
    command.add_argument("models", nargs="*", help="names of models (default: all)")
    _add_models_dir(command)
    command.add_argument(
        "--outliers-dir",
        type=Path,
        help="folder of the four IDX files of Fashion-MNIST (default: the metrics that need it are left out)",
    )
    return command


def _add_draws(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Measure generators on several draws of their samples: the mean and the standard deviation of each "
        "metric, which tell what a difference between two generators is worth."
    )
    command = _add(actions, "draws", about)
    command.add_argument("models", nargs="*", help="names of generators (default: all but float16's)")
    _add_models_dir(command)
    _add_on(command, "compare the samples with")
    command.add_argument(
        "--draws", type=_several, default=5, help="draws of each generator, 2 or more (default: %(default)s)"
    )
    command.add_argument("--output", type=Path, help="JSON file for the figures of each draw")
    return command


def _add_robustness(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Measure classifiers on images with fifteen kinds of corruption, and their calibration before and "
        "after a temperature that is fitted on the validation images."
    )
    command = _add(actions, "robustness", about)
    command.add_argument("models", nargs="*", help="names of classifiers (default: all but float16's)")
    _add_models_dir(command)
    _add_on(command, "corrupt")
    command.add_argument("--output", type=Path, help="JSON file for the figures")
    command.add_argument("--cards", action="store_true", help="write each model's table into its card")
    return command


def _add_outliers(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Measure what classifiers with an ood_score abstain from, on the test images of MNIST and of "
        "Fashion-MNIST, letters, shapes, noise, inverted and rotated digits: two tables and a picture."
    )
    command = _add(actions, "outliers", about)
    command.add_argument(
        "models", nargs="*", help="names of classifiers (default: all that have a threshold, but float16's)"
    )
    _add_models_dir(command)
    command.add_argument(
        "--outliers-dir",
        type=Path,
        default=Path("data/fashion-mnist"),
        help="folder of the four IDX files of Fashion-MNIST (default: %(default)s)",
    )
    command.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/outliers"),
        help="for the figures and the picture (default: %(default)s)",
    )
    return command


def _add_pareto(actions: Any) -> argparse.ArgumentParser:
    about = "Measure what classifiers cost: a table of accuracy, size and CPU time, and a picture."
    command = _add(actions, "pareto", about)
    command.add_argument("models", nargs="*", help="names of classifiers (default: all but float16's)")
    _add_models_dir(command)
    command.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/pareto"),
        help="for the figures and the picture (default: %(default)s)",
    )
    return command


def _add_explain(actions: Any) -> argparse.ArgumentParser:
    about = (
        "Measure how good a classifier's explanations are: deletion and insertion curves, the agreement of "
        "the methods, and whether randomised weights change them; on one thread."
    )
    command = _add(actions, "explain", about)
    command.add_argument("model", help="a published classifier, such as cnn")
    _add_models_dir(command)
    _add_on(command, "explain")
    command.add_argument(
        "--digits", type=_positive, default=500, help="number of images (default: %(default)s)"
    )
    command.add_argument(
        "--randomised-digits",
        type=_positive,
        default=50,
        help="number of them that are explained again with randomised weights (default: %(default)s)",
    )
    command.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/explanations"),
        help="for the figures and the picture (default: %(default)s)",
    )
    return command


def _add_sign(actions: Any) -> argparse.ArgumentParser:
    about = "Sign every file of version folders, for services with --trusted-keys. Needs the extra `signing`."
    command = _add(actions, "sign", about)
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="such as models/cnn/1")
    command.add_argument(
        "--key",
        type=Path,
        required=True,
        help="private key: elliptic curve (P-256, P-384 or P-521), in PEM, without a password",
    )
    return command


def _add_models_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--models-dir", type=Path, default=Path("models"), help="the models folder (default: %(default)s)"
    )


def _add_on(command: argparse.ArgumentParser, purpose: str) -> None:
    command.add_argument(
        "--on",
        choices=["validation", "test"],
        default="validation",
        help=f"images to {purpose} (default: %(default)s); the test images are for final figures only",
    )


def _add_allowed_loss(command: argparse.ArgumentParser, points: float, bits: str) -> None:
    """Add what decides whether a version on fewer bits is published, and replaces another."""
    command.add_argument(
        "--allow-loss",
        type=float,
        default=points,
        metavar="POINTS",
        help="largest accepted accuracy loss on the test set, in percentage points (default: %(default)s)",
    )
    command.add_argument("--force", action="store_true", help=f"replace the {bits} version if it exists")


def _add_published(
    command: argparse.ArgumentParser, example: str, purpose: str, kind: str = "classifier"
) -> None:
    """Add the arguments that choose a published model. purpose: what is done to its version."""
    command.add_argument("model", help=f"a published {kind}, such as {example}")
    _add_models_dir(command)
    command.add_argument("--version", type=_positive, help=f"version to {purpose} (default: the latest)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is less than 2")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and finite")
    return value
