"""A model's description of itself: manifest.json, checked. Knows nothing of onnxruntime or HTTP.

A manifest lies next to its graph, `models/<name>/<version>/{model.onnx,manifest.json}`.
"""

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from service.errors import ManifestError

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"

Datatype = Literal[
    "BOOL", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FP16", "FP32", "FP64"
]
"""Tensor datatypes by their Open Inference Protocol names."""

Task = Literal["classification", "generation", "encoding", "search", "captioning", "gradient", "inference"]

STYLES = {"stroke": ("thin", "thick"), "slant": ("upright", "slanted"), "size": ("small", "large")}
"""What texts say of a digit's style: each style's lower and upper end. Between them nothing is said."""

CAPTIONER_SUFFIX = "-image"
"""The captioning model of the search model `text` is `text-image`, of the same version."""

ENCODER_SUFFIX = "-encoder"
"""The encoding model of the generator `vae` is `vae-encoder`, of the same version."""

FP16_SUFFIX = "-fp16"
INT8_SUFFIX = "-int8"
"""`cnn` on fewer bits is `cnn-fp16` and `cnn-int8`, its variants: the same version, the same tensors."""

VARIANTS = {"int8": INT8_SUFFIX, "fp16": FP16_SUFFIX}
"""The suffix of each kind of variant."""

GRADIENT_SUFFIX = "-gradient"
"""The gradient model of the classifier `cnn` is `cnn-gradient`, of the same version."""

STYLE_LEVELS = 3
"""Levels of a style: the lower end, nothing said, the upper end."""

ANY_SIZE = 0
"""A size of `Outputs` that a model chooses itself."""

Outputs = dict[str, tuple[Datatype, tuple[int, ...]]]
"""Outputs that a task requires: datatype and shape by name."""

Preprocess = Literal["mnist-digit", "resize", "center-crop", "none"]
"""How a PNG or a JPEG becomes a row of a model's image input; see `Manifest`."""

OOD_SCORE = "ood_score"
"""The output of a classification model that says how unlike its training inputs a row is."""

DIGIT_SIZES = (28, 28, 1)
"""Height, width and channels of an image that "mnist-digit" makes."""

MODEL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

ModelName = Annotated[str, Field(pattern=MODEL_NAME.pattern)]

MAX_VERSION = 2**31

MOST_NUMBERED = 2**16
"""The largest number of classes that need no names: a broken graph may promise more than memory holds."""

STRINGS_ADVICE = (
    "strings are not served: leave this output out of the manifest (the graph may keep it), "
    "and name the classes in labels"
)

FIXED_BATCH_ADVICE = (
    "export the graph with a free batch axis, in PyTorch by dynamic_shapes; python -m training import frees "
    "that of a classifier"
)
FREE_AXIS_ADVICE = "python -m onnxruntime.tools.make_dynamic_shape_fixed fixes an axis of a graph"


def _small_digits(value: object) -> object:
    """Accept the capital digits that Windows' certutil and Get-FileHash write."""
    return value.lower() if isinstance(value, str) else value


UNKNOWN_SHA256 = "0" * 64
"""The checksum of a file that is not written yet: no file has it."""

Sha256 = Annotated[str, BeforeValidator(_small_digits), Field(pattern=r"^[0-9a-f]{64}$")]


def _inside_the_folder(name: str) -> str:
    """Check the name of a file that belongs to a version. Raises ValueError."""
    if not is_inside(name) or name in (MODEL_FILE, MANIFEST_FILE):
        raise ValueError(f"file is {name!r}, expected the path of another file in the version's folder")
    return name


FileName = Annotated[str, AfterValidator(_inside_the_folder)]


def _no_strings(value: object) -> object:
    if value in ("BYTES", "STRING"):
        raise ValueError(f"datatype is {value}; {STRINGS_ADVICE}")
    return value


def _apart(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Tell labels of one name apart: the second `a` becomes `a#2`.

    Answers are keyed by label, so of two that are equal one would be lost.
    """
    names = set(labels)
    apart: dict[str, None] = {}
    numbers: dict[str, int] = {}
    for label in labels:
        name = label
        while name in apart or (name != label and name in names):
            numbers[label] = numbers.get(label, 1) + 1
            name = f"{label}#{numbers[label]}"
        apart[name] = None
    return tuple(apart)


Labels = Annotated[tuple[str, ...], AfterValidator(_apart)]


class _Frozen(BaseModel):
    # JSON has no NaN: a metric that is none would make the answers about its model fail.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    datatype: Annotated[Datatype, BeforeValidator(_no_strings)]
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
            advice = FREE_AXIS_ADVICE if self.shape[0] == -1 else FIXED_BATCH_ADVICE
            seen = f"shape of {self.name!r} is {list(self.shape)}"
            raise ValueError(f"{seen}, expected [-1, ...] with positive sizes; {advice}")
        return self


class Manifest(_Frozen):
    """The contents of manifest.json.

    A classification model has one input, and probabilities FP32 (-1, classes) as its first output.
    A generation model has an input `z` FP32 (-1, size), may have an input `label` INT64 (-1), and has
    images UINT8 (-1, height, width) or (-1, height, width, 3) as its first output.
    An encoding model has an input of images UINT8, may have an input `label` INT64 (-1), and has outputs FP32
    (-1, size), the first of which are the latents.
    A search model has one input, UTF-8 text UINT8 (-1, bytes) padded with zeros, and the outputs that
    `search_outputs` lists; a captioning model one of images UINT8, and the outputs of `captioning_outputs`.
    A gradient model has an input of images FP32, an input `label` INT64 (-1), and one output like the images:
    the gradient of the label's probability.
    An inference model may have any inputs and outputs: only `/v2/models/{name}/infer` runs it, and nothing is
    known of what its numbers mean.

    labels: the names of the classes, in the order of the probabilities; for generation and encoding,
        the names of the conditions, in the order of the values of `label`. Equal names are told apart: `a`,
        `a#2`. The classes of a classification model without labels have their numbers as names, `0`,
        `1`, ..., if there are at most MOST_NUMBERED.
    sha256: the SHA-256 of model.onnx.
    files: the SHA-256 of each other file that the graph keeps weights in (external data), by its path in the
        version's folder. Left out if there are none.
    preprocess: how a PNG or a JPEG becomes a row of the image input. Rows that are sent as numbers, raw or in
        JSON, are never preprocessed.
        "mnist-digit": the digit in the picture is found, made light on black, scaled to 20x20 and
        centred by its mass, like MNIST's (`service.content.digits`); only for grey 28x28 images.
        "resize": the picture is made grey or RGB and resized to the input's height and width.
        "center-crop": like "resize", but what exceeds the input's proportions is cut off first, equally on
        both sides.
        "none": pictures are rejected.
        Absent in manifests older than the field: "mnist-digit" for grey 28x28 images, "resize" for
        images of any other size, "none" for other tensors; see `picture_preprocess`.
    abstain_above: the threshold of the output `ood_score` FP32 (-1), above which the service advises not to
        believe a row's label. Positive, and the score grows with the distance from what the model knows; only
        for classification.
    default: whether the model answers the requests of its task that name no model, where no setting names
        another; of several, the first by name. Left out if false.
    metrics: what `python -m training evaluate` measures on the test set, and `multiply_adds`, a row's cost.
    command: the command that made the model.
    """

    name: ModelName
    version: int = Field(ge=1, le=MAX_VERSION)
    task: Task
    description: str = ""
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    labels: Labels = ()
    preprocess: Preprocess | None = None
    abstain_above: float | None = Field(default=None, gt=0)
    sha256: Sha256
    files: dict[FileName, Sha256] = Field(default_factory=dict)
    default: bool = False
    metrics: dict[str, float | int | str] = Field(default_factory=dict)
    command: str = ""

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, object] = handler(self)
        for name in ("files", "default"):
            if not content.get(name):
                content.pop(name, None)
        return content

    def input(self, name: str) -> TensorSpec | None:
        """Return the input of that name, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def condition(self) -> TensorSpec | None:
        """Return the input `label`, which holds places of labels; None if there is none."""
        return None if self.task == "inference" else self.input("label")

    def ood_output(self) -> int | None:
        """Return the place of the output `ood_score` among the outputs; None without a threshold for it."""
        if self.abstain_above is None:
            return None
        return next(place for place, spec in enumerate(self.outputs) if spec.name == OOD_SCORE)

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
    def _number_classes_without_names(self) -> Self:
        shape = self.outputs[0].shape
        nameless = self.task == "classification" and not self.labels and len(shape) == 2
        if nameless and shape[1] <= MOST_NUMBERED:
            object.__setattr__(self, "labels", tuple(map(str, range(shape[1]))))  # manifests are frozen
        return self

    @model_validator(mode="after")
    def _tensors_suit_the_task(self) -> Self:
        if self.task == "classification":
            self._check_classification()
        elif self.task == "generation":
            self._check_generation()
        elif self.task == "encoding":
            self._check_encoding()
        elif self.task == "search":
            self._check_search()
        elif self.task == "captioning":
            self._check_captioning()
        elif self.task == "gradient":
            self._check_gradient()
        label = self.condition()
        if label is not None and (label.datatype, label.shape) != ("INT64", (-1,)):
            raise ValueError(f"input label is {label.datatype} {list(label.shape)}, expected INT64 [-1]")
        if label is not None and not self.labels:
            raise ValueError("the model has an input label, expected the names of its values in labels")
        return self

    @model_validator(mode="after")
    def _threshold_has_its_score(self) -> Self:
        if self.abstain_above is None:
            return self
        if self.task != "classification":
            raise ValueError(f"abstain_above is given for {self.task}, expected only for classification")
        score = next((spec for spec in self.outputs if spec.name == OOD_SCORE), None)
        if score is None or (score.datatype, score.shape) != ("FP32", (-1,)):
            seen = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in self.outputs)
            raise ValueError(
                f"abstain_above is given, but the outputs are {seen}, expected {OOD_SCORE} FP32 [-1] too"
            )
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

    def _check_encoding(self) -> None:
        seen = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in self.inputs)
        others = [spec for spec in self.inputs if spec.name != "label"]
        if len(others) != 1 or others[0].image_layout() is None:
            raise ValueError(f"an encoding model has the inputs {seen}, expected images UINT8 and label")
        for spec in self.outputs:
            if spec.datatype != "FP32" or len(spec.shape) != 2:
                raise ValueError(
                    f"output {spec.name} is {spec.datatype} {list(spec.shape)}, expected FP32 [-1, size]"
                )

    def _check_search(self) -> None:
        seen = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in self.inputs)
        if len(self.inputs) != 1 or self.inputs[0].datatype != "UINT8" or len(self.inputs[0].shape) != 2:
            raise ValueError(f"a search model has the inputs {seen}, expected text UINT8 [-1, bytes]")
        self._check_outputs(search_outputs(len(self.labels)))

    def _check_captioning(self) -> None:
        if len(self.inputs) != 1 or self._image_layout() is None:
            raise ValueError("a captioning model needs one input of images, UINT8")
        self._check_outputs(captioning_outputs(len(self.labels)))

    def _check_gradient(self) -> None:
        seen = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in self.inputs)
        images = [spec for spec in self.inputs if spec.name != "label"]
        if len(images) != 1 or len(self.inputs) != 2 or images[0].datatype != "FP32":
            raise ValueError(f"a gradient model has the inputs {seen}, expected images FP32 and label")
        output = self.outputs[0]
        if (output.datatype, output.shape) != (images[0].datatype, images[0].shape):
            raise ValueError(
                f"output {output.name} is {output.datatype} {list(output.shape)}, expected FP32 "
                f"{list(images[0].shape)}, like {images[0].name}"
            )

    def _check_outputs(self, expected: Outputs) -> None:
        """Check names, order, datatypes and shapes."""
        seen = [spec.name for spec in self.outputs]
        if seen != [*expected]:
            raise ValueError(f"a {self.task} model has the outputs {seen}, expected {[*expected]}")
        for spec in self.outputs:
            datatype, shape = expected[spec.name]
            alike = len(spec.shape) == len(shape) and all(
                size in (ANY_SIZE, own) for own, size in zip(spec.shape, shape, strict=True)
            )
            if spec.datatype != datatype or not alike:
                sizes = ", ".join("any" if size == ANY_SIZE else str(size) for size in shape)
                raise ValueError(
                    f"output {spec.name} is {spec.datatype} {list(spec.shape)}, expected {datatype} [{sizes}]"
                )


def search_outputs(labels: int) -> Outputs:
    """Return the outputs of a search model in their order: datatype and shape by name.

    vector: the text's, of length 1. understood: how probably the text means something, 0.5 at the
    threshold. digit: probabilities of the labels, the last of none. stroke, slant, size: probabilities of the
    levels. score: how probably each of the nearest images shows what the text says, descending. index: their
    numbers in the gallery. label: their labels. picture: their pixels.
    """
    return {
        "vector": ("FP32", (-1, ANY_SIZE)),
        "understood": ("FP32", (-1,)),
        "digit": ("FP32", (-1, labels + 1)),
        **dict.fromkeys(STYLES, ("FP32", (-1, STYLE_LEVELS))),
        "score": ("FP32", (-1, ANY_SIZE)),
        "index": ("INT64", (-1, ANY_SIZE)),
        "label": ("INT64", (-1, ANY_SIZE)),
        "picture": ("UINT8", (-1, ANY_SIZE, ANY_SIZE, ANY_SIZE)),
    }


def captioning_outputs(labels: int) -> Outputs:
    """Return the outputs of a captioning model, as `search_outputs` does.

    digit: probabilities of the labels. stroke, slant, size: of the levels. vector: the image's, of length 1,
    vector, near those of the texts that describe it.
    """
    return {
        "digit": ("FP32", (-1, labels)),
        **dict.fromkeys(STYLES, ("FP32", (-1, STYLE_LEVELS))),
        "vector": ("FP32", (-1, ANY_SIZE)),
    }


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder`/manifest.json.

    Raises ManifestError if it is missing or invalid, or if it names another model or version than its
    folders do.
    """
    path = folder / MANIFEST_FILE
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for its writer
            raise ManifestError(f"{path} is not a regular file")
        manifest = Manifest.model_validate_json(decode_text(path.read_bytes()))
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not a manifest: {error}, expected UTF-8 or UTF-16") from error
    except ValidationError as error:
        raise ManifestError(f"{path} is not a manifest: {first_problem(error)}") from error
    seen, expected = f"{manifest.name}/{manifest.version}", f"{folder.parent.name}/{folder.name}"
    if seen != expected:
        raise ManifestError(f"{path} describes {seen}, but lies in {expected}")
    return manifest


def decode_text(data: bytes) -> str:
    """Decode JSON text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Windows PowerShell writes UTF-16, and Notepad a mark in front of UTF-8. Raises UnicodeDecodeError.
    """
    return data.decode(json.detect_encoding(data))


def is_inside(name: str) -> bool:
    """Whether a relative path of normal form stays inside the folder that it starts from."""
    path = PurePosixPath(name)
    usual = os.path.normpath(name) == name and "\\" not in name and "\0" not in name
    return usual and name != "." and not path.is_absolute() and ".." not in path.parts


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_problem(error: ValidationError) -> str:
    """Return where the first problem lies, and what it is."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
