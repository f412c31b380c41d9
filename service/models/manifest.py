"""A model's description of itself: manifest.json, checked. Knows nothing of onnxruntime or HTTP.

A manifest lies next to its graph, `models/<name>/<version>/{model.onnx,manifest.json}`.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ManifestError

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"

Datatype = Literal[
    "BOOL", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FP16", "FP32", "FP64"
]
"""Tensor datatypes by their Open Inference Protocol names."""

Task = Literal["classification", "generation", "encoding"]

Preprocess = Literal["mnist-digit", "resize", "none"]
"""How a PNG or a JPEG becomes a row of a model's image input; see `Manifest`."""

DIGIT_SIZES = (28, 28, 1)
"""Height, width and channels of an image that "mnist-digit" makes."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageLayout(NamedTuple):
    """How one row of a tensor holds an image. channels: 1 (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int
    channels_first: bool


class TensorSpec(_Frozen):
    """One input or output of a graph.

    shape: the first axis is the batch axis, always -1; the others are fixed and positive.
    """

    name: str = Field(min_length=1)
    datatype: Datatype
    shape: tuple[int, ...] = Field(min_length=1)

    def image_layout(self) -> ImageLayout | None:
        """Return the layout of the image in a row, or None if the tensor holds no images.

        Images are UINT8 (height, width), (height, width, 1 or 3) or (1 or 3, height, width).
        """
        shape = self.shape[1:]
        if self.datatype != "UINT8":
            return None
        if len(shape) == 2:
            return ImageLayout(shape[0], shape[1], 1, False)
        if len(shape) == 3 and shape[2] in (1, 3):
            return ImageLayout(shape[0], shape[1], shape[2], False)
        if len(shape) == 3 and shape[0] in (1, 3):
            return ImageLayout(shape[1], shape[2], shape[0], True)
        return None

    @model_validator(mode="after")
    def _only_the_batch_axis_is_free(self) -> Self:
        if self.shape[0] != -1 or any(size < 1 for size in self.shape[1:]):
            raise ValueError(
                f"shape of {self.name!r} is {list(self.shape)}, expected [-1, ...] with positive sizes"
            )
        return self


class Manifest(_Frozen):
    """The contents of manifest.json.

    A classification model has one input, and probabilities FP32 (-1, classes) as its first output.
    A generation model has an input `z` FP32 (-1, size), may have an input `label` INT64 (-1), and has
    images UINT8 (-1, height, width) or (-1, height, width, 3) as its first output.

    labels: the names of the classes, in the order of the probabilities; for generation and encoding,
        the names of the conditions, in the order of the values of `label`.
    preprocess: how a PNG or a JPEG becomes a row of the image input. Rows that are sent as numbers, raw or in
        JSON, are never preprocessed.
        "mnist-digit": the digit in the picture is found, made light on black, scaled to 20x20 and
        centred by its mass, like MNIST's (`service.content.digits`); only for grey 28x28 images.
        "resize": the picture is made grey or RGB and resized to the input's height and width.
        "none": pictures are rejected.
        Absent in manifests older than the field: "mnist-digit" for grey 28x28 images, "resize" for
        images of any other size, "none" for other tensors; see `picture_preprocess`.
    metrics: what `python -m training evaluate` measures on the test set.
    command: the command that made the model.
    """

    name: ModelName
    version: int = Field(ge=1)
    task: Task
    description: str = ""
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    metrics: dict[str, float | int | str] = Field(default_factory=dict)
    command: str = ""

    def input(self, name: str) -> TensorSpec | None:
        """Return the input of that name, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    @property
    def picture_preprocess(self) -> Preprocess:
        """The preprocessing of a picture: `preprocess`, or the default of a manifest without it."""
        if self.preprocess is not None:
            return self.preprocess
        layout = self._image_layout()
        if layout is None:
            return "none"
        return "mnist-digit" if layout[:3] == DIGIT_SIZES else "resize"

    def _image_layout(self) -> ImageLayout | None:
        """Return the layout of the first input that holds images, or None."""
        return next((layout for spec in self.inputs if (layout := spec.image_layout())), None)

    @model_validator(mode="after")
    def _tensors_suit_the_task(self) -> Self:
        if self.task == "classification":
            self._check_classification()
        elif self.task == "generation":
            self._check_generation()
        label = self.input("label")
        if label is not None and (label.datatype, label.shape) != ("INT64", (-1,)):
            raise ValueError(f"input label is {label.datatype} {list(label.shape)}, expected INT64 [-1]")
        if label is not None and not self.labels:
            raise ValueError("the model has an input label, expected the names of its values in labels")
        return self

    @model_validator(mode="after")
    def _preprocess_suits_the_image_input(self) -> Self:
        if self.preprocess in (None, "none"):
            return self
        layout = self._image_layout()
        seen = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in self.inputs)
        if layout is None:
            raise ValueError(f"preprocess is {self.preprocess}, but the inputs are {seen}, expected images")
        if self.preprocess == "mnist-digit" and layout[:3] != DIGIT_SIZES:
            raise ValueError(
                f"preprocess is mnist-digit, but the inputs are {seen}, expected UINT8 [-1, 28, 28]"
            )
        return self

    def _check_classification(self) -> None:
        output = self.outputs[0]
        if len(self.inputs) != 1:
            raise ValueError(f"a classification model has {len(self.inputs)} inputs, expected 1")
        if output.datatype != "FP32" or len(output.shape) != 2:
            raise ValueError(
                f"output {output.name} is {output.datatype} {list(output.shape)}, expected FP32 [-1, classes]"
            )
        if len(self.labels) != output.shape[1]:
            raise ValueError(f"labels names {len(self.labels)} classes, expected {output.shape[1]}")

    def _check_generation(self) -> None:
        z, output = self.input("z"), self.outputs[0]
        if z is None or z.datatype != "FP32" or len(z.shape) != 2:
            raise ValueError("a generation model needs an input z, FP32 [-1, size]")
        others = sorted(spec.name for spec in self.inputs if spec.name not in ("z", "label"))
        if others:
            raise ValueError(f"a generation model has the inputs {others}, expected only z and label")
        if output.datatype != "UINT8" or (len(output.shape) != 3 and output.shape[3:] != (3,)):
            raise ValueError(
                f"output {output.name} is {output.datatype} {list(output.shape)}, expected UINT8 "
                "[-1, height, width] or [-1, height, width, 3]"
            )


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder`/manifest.json.

    Raises ManifestError if it is missing or invalid, or if it names another model or version than its
    folders do.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing") from None
    except ValidationError as error:
        raise ManifestError(f"{path} is not a manifest: {_first_problem(error)}") from error
    seen, expected = f"{manifest.name}/{manifest.version}", f"{folder.parent.name}/{folder.name}"
    if seen != expected:
        raise ManifestError(f"{path} describes {seen}, but lies in {expected}")
    return manifest


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
