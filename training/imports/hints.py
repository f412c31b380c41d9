"""What Hugging Face's transformers, timm and Ultralytics write about a network besides its graph."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from service.models.class_labels import read_class_labels
from service.models.manifest import Preprocess
from training.errors import NetworkError
from training.imports.normalization import Normalization

Json = Mapping[str, Any]

FILES = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Hints:
    """What is known of a network. shape: of a row, with the channels first, or None."""

    labels: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    normalization: Normalization = field(default_factory=Normalization)
    preprocess: Preprocess | None = None


def read_hints(path: Path, model: ModelProto) -> Hints:
    """Return the hints in config.json and preprocessor_config.json beside a graph, and in the graph itself.

    In Hugging Face's hub the two files lie above a graph's folder `onnx`. Hints that are missing have their
    defaults. Raises NetworkError if a file is broken.
    """
    folder = path.resolve().parent
    if folder.name == "onnx" and not any((folder / name).is_file() for name in FILES):
        folder = folder.parent
    config, processor = (_read(folder / name) for name in FILES)
    try:
        if "pretrained_cfg" in config:
            return _timm(config)
        if processor or "id2label" in config:
            return _transformers(config, processor)
    except (KeyError, TypeError, ValueError) as error:
        raise NetworkError(f"the JSON files in {folder} are not those of a classifier: {error!r}") from None
    metadata = {each.key: each.value for each in model.metadata_props}
    if metadata.get("task") == "classify" and "names" in metadata:
        return _ultralytics(metadata)
    try:
        return Hints(read_class_labels(path))
    except ValueError as error:
        raise NetworkError(f"{path} is damaged: {error}") from None


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file: the names of the classes. Raises NetworkError."""
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise NetworkError(f"{path} is no text in UTF-8: {error}") from None


def _read(path: Path) -> Json:
    """Return the object of a JSON file, empty if the file is absent."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise NetworkError(f"{path} is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _timm(config: Json) -> Hints:
    about = config["pretrained_cfg"]
    return Hints(
        tuple(config.get("label_names") or ()),
        tuple(about["input_size"]),
        Normalization(mean=tuple(about["mean"]), std=tuple(about["std"])),
        "center-crop" if about.get("crop_mode", "center") == "center" else "resize",
    )


def _transformers(config: Json, processor: Json) -> Hints:
    names = config.get("id2label") or {}
    labels = tuple(str(names[str(number)]) for number in range(len(names)))
    if not processor:
        return Hints(labels)
    crops = processor.get("do_center_crop") and "crop_size" in processor
    size = processor["crop_size" if crops else "size"]
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    sides = [size.get(name, size.get("shortest_edge")) for name in ("height", "width")]
    scales, normalizes = processor.get("do_rescale", True), processor.get("do_normalize", True)
    normalization = Normalization(
        scale=1 / processor.get("rescale_factor", 1 / 255) if scales else 1.0,
        mean=tuple(processor["image_mean"]) if normalizes else (0.0,),
        std=tuple(processor["image_std"]) if normalizes else (1.0,),
        bgr=bool(processor.get("do_flip_channel_order")),
    )
    shape = None if None in sides else (config.get("num_channels", 3), *sides)
    return Hints(
        labels, shape, normalization, "center-crop" if crops or "shortest_edge" in size else "resize"
    )


def _ultralytics(metadata: Mapping[str, str]) -> Hints:
    """Its metadata are Python's literals, such as {0: 'cat', 1: 'dog'}."""
    try:
        names = ast.literal_eval(metadata["names"])
        return Hints(tuple(str(names[number]) for number in range(len(names))), preprocess="center-crop")
    except (KeyError, SyntaxError, TypeError, ValueError) as error:
        raise NetworkError(f"names in the graph's metadata are no classes: {error!r}") from None
