"""The queries and JSON bodies of the routes: one model each, for validation and for OpenAPI."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema

from service.content.latents import MAX_SEED
from service.errors import InvalidInput
from service.models.manifest import MAX_VERSION, TensorSpec

_DEPRECATED: dict[str, JsonValue] = {"deprecated": True}
"""In the schema only: pydantic's own `deprecated` warns whenever the field is read."""


Rows = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "array", "minItems": 1}, {"type": "string"}]})]
"""Rows of a tensor; `service.content.codecs.rows_from_json` checks them, because pydantic would take long."""


def _not_a_boolean(value: Any) -> Any:
    """Reject true and false, which pydantic would take for the numbers 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number, not a boolean")
    return value


NotBoolean = BeforeValidator(_not_a_boolean)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifyQuery(_Body):
    """The query of /classify."""

    model: str | None = Field(None, description="A classifier; the default one if absent.")
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )
    top_k: int | None = Field(
        None, ge=1, description="Return only the k largest probabilities of each image, descending."
    )
    show_input: bool | None = Field(
        None, description="Also return each image as the model sees it, after its preprocessing."
    )


class ClassifyRequest(_Body):
    """Images to classify."""

    images: Rows = Field(
        description="One image or a list of them. An image is a nested list of pixels in 0..255 (rows of "
        "columns), a flat list of as many, or a string: base64 of a picture or of raw pixels, plain or as a "
        "`data:` URL."
    )


class Prediction(_Body):
    """A classifier's result for one image."""

    label: str = Field(description="The most probable label.")
    probability: float = Field(description="Its probability.")
    probabilities: dict[str, float] = Field(
        description="Every label's probability in the model's order; with top_k, the k largest, descending."
    )
    input: str | None = Field(
        None, description="With show_input, base64 of a PNG: the image after its preprocessing."
    )


class ClassifyResponse(_Body):
    """One prediction per image, in the order of the request."""

    model: str
    version: int
    predictions: list[Prediction]


class GenerateRequest(_Body):
    """The fields of a request to /generate, in its query or in a JSON body."""

    model: str | None = Field(None, description="A generator; the default one if absent.")
    version: Annotated[int | None, NotBoolean] = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )
    count: Annotated[int | None, NotBoolean] = Field(
        None, ge=1, description="The number of images; 1 if absent, or the number of rows of z."
    )
    label: Annotated[str | int | None, NotBoolean] = Field(
        None,
        description="The label of every image, one of the model's; `mixed`, the default: image i gets the "
        "i-th label, wrapping around.",
    )
    digit: Annotated[str | int | None, NotBoolean] = Field(
        None, description="The former name of `label`.", json_schema_extra=_DEPRECATED
    )
    seed: Annotated[Annotated[int, Field(ge=0, le=MAX_SEED)] | None, NotBoolean] = Field(
        None,
        description="The same seed gives the same images; if absent, a random one is chosen and returned.",
    )
    z: Rows | None = Field(
        None,
        description="Latents instead of a seed: a list of numbers, a list of such lists, or base64 of raw "
        "float32.",
    )


class GeneratedImage(_Body):
    """One generated image."""

    label: str | None = Field(description="The image's label; null if the model has no labels.")
    digit: str | None = Field(
        description="The former name of `label`, with the same value.", json_schema_extra=_DEPRECATED
    )
    png: str = Field(description="Base64 of a PNG.")


class GenerateResponse(_Body):
    """Generated images. seed: null if z was given."""

    model: str
    version: int
    seed: int | None
    images: list[GeneratedImage]


class ErrorResponse(_Body):
    """Why a request failed: what was seen and what was expected."""

    error: str


class Liveness(_Body):
    """The process responds."""

    live: bool


class Readiness(_Body):
    """Every model is loaded and warm, and new requests are accepted."""

    ready: bool


class ModelSummary(_Body):
    """A model that is being served."""

    name: str
    version: int
    versions: list[int]
    task: str
    description: str
    multiply_adds: int | None = Field(
        description="The cost of one row: multiplications in convolutions and matrix products, each with its "
        "addition. null if the manifest's metrics do not tell it."
    )


class ModelDetail(ModelSummary):
    """A model version in full."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    labels: list[str]
    metrics: dict[str, float | int | str]
    sha256: str
    command: str
    card: str = Field(description="The model card, Markdown.")


class ModelFailure(_Body):
    """A model version, or a whole model, that cannot be served."""

    name: str
    version: int | None = Field(description="null if the whole model is meant.")
    reason: str


class ModelList(_Body):
    """The latest version of every model that is being served, and what the last look could not load."""

    models: list[ModelSummary]
    defaults: dict[str, str] = Field(
        default_factory=dict, description="The model for requests that name none, for each task that has one."
    )
    failed: list[ModelFailure] = Field(default_factory=list)


def invalid_input(error: ValidationError) -> InvalidInput:
    """Return the first problem of a body's or a query's values as an InvalidInput."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part.islower())
    return InvalidInput(f"{name} is {str(problem['input'])[:80]!r}, expected: {problem['msg']}")


def current_fields(body: type[BaseModel]) -> tuple[str, ...]:
    """Return the fields of a request body, without deprecated ones."""
    fields = body.model_fields.items()
    return tuple(name for name, field in fields if field.json_schema_extra != _DEPRECATED)
