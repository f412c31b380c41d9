"""The queries and JSON bodies of the routes: one model each, for validation and for OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema

from service.content.attributions import MAX_STEPS
from service.content.latents import MAX_SEED
from service.errors import InvalidInput
from service.models.manifest import MAX_VERSION, Preprocess, TensorSpec

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


def _from_words(value: Any) -> Any:
    """Read `true` and `false`, as a query has them; pydantic would take 1, yes and on for true, too."""
    if value is None or isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    if isinstance(value, str):
        return value  # of a field that is no Flag: a name
    raise ValueError("true or false")


def _only_words(value: Any) -> Any:
    value = _from_words(value)
    if isinstance(value, str):
        raise ValueError("true or false")
    return value


Flag = Annotated[bool | None, BeforeValidator(_only_words)]
FlagOrName = Annotated[bool | str | None, BeforeValidator(_from_words)]


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
    ood_score: float | None = Field(
        None,
        description="How unlike the training images this one is. Only models with a threshold for it, "
        "`abstain_above` in their manifests, give this field and the next.",
    )
    abstain: bool | None = Field(
        None, description="Whether `ood_score` is above the model's threshold: do not believe the label."
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
    prompt: str | None = Field(
        None,
        description="A digit and its style in words, such as `a thin slanted seven`, instead of a label. For "
        "each image of a prompt that names a style several are drawn, and the one nearest to it is kept.",
    )
    grid: Flag = Field(
        None,
        description="One row of images for each label and one column for each of `count` latents, the same "
        "in every row; `count` is then the number of columns.",
    )
    verify: FlagOrName = Field(
        None,
        description="true, or a classifier's name: it reads each image, and the response says whether it "
        "read the image's label.",
    )
    reject: Flag = Field(
        None,
        description="true: also draw images that are misread again, up to four times each, from seeds that "
        "follow from the first; implies verify.",
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
    read: str | None = Field(None, description="The label that the classifier read, if it was asked.")
    draws: int | None = Field(None, description="How often the image was drawn; 1 if it never was rejected.")
    png: str = Field(description="Base64 of a PNG.")


class Verification(_Body):
    """What a classifier made of the images. agreeing: how many it read as their label."""

    classifier: str
    version: int
    agreeing: int
    agreement: float = Field(description="As a fraction of the images.")
    draws: int = Field(description="Images drawn, with those that were rejected.")


class Style(_Body):
    """How a digit is written; null for what is left open, or is between the two."""

    stroke: Literal["thin", "thick"] | None
    slant: Literal["upright", "slanted"] | None
    size: Literal["small", "large"] | None


class Understood(Style):
    """What a prompt asks for, as the model read it."""

    label: str | None = Field(description="null for any.")
    certainty: float = Field(description="How probably the prompt asks for something at all; 0.5 or more.")


class GenerateResponse(_Body):
    """Generated images. seed: null if z was given."""

    model: str
    version: int
    seed: int | None
    understood: Understood | None = Field(None, description="What the prompt asks for; only if there is one.")
    verification: Verification | None = Field(
        None, description="What a classifier read in the images; only if it was asked."
    )
    images: list[GeneratedImage]


class SearchQuery(_Body):
    """The query of GET /search."""

    prompt: str = Field(description="A digit and its style in words, such as `a thin slanted seven`.")
    count: int | None = Field(None, ge=1, description="The number of images; 10 if absent.")
    model: str | None = Field(None, description="A search model; the default one if absent.")
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )


class FoundImage(_Body):
    """An image of the gallery."""

    index: int = Field(description="Its number in the gallery; for MNIST's models, in the test set.")
    score: float = Field(description="How probably it shows all that the prompt says.")
    label: str = Field(description="Its true label.")
    png: str = Field(description="Base64 of a PNG.")


class SearchResponse(_Body):
    """The images nearest to a prompt, the nearest first."""

    model: str
    version: int
    understood: Understood
    images: list[FoundImage]


class CaptionQuery(_Body):
    """The query of POST /search."""

    model: str | None = Field(None, description="A captioning model; the default one if absent.")
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )
    top_k: int | None = Field(None, ge=1, description="The number of captions of each image; 3 if absent.")


class Caption(_Body):
    """What an image may show."""

    caption: str
    probability: float


class ImageCaptions(Style):
    """What an image shows, each part by itself, and the most probable captions, descending."""

    label: str
    captions: list[Caption]


class CaptionResponse(_Body):
    """One description per image, in the order of the request."""

    model: str
    version: int
    images: list[ImageCaptions]


class InterpolateQuery(_Body):
    """The query of /interpolate."""

    model: str | None = Field(None, description="A generator; the default one if absent.")
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The first image's: that of /generate. If absent, a random one is chosen and returned.",
    )
    to_seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="The last image's; if absent, that of `seed`'s second image."
    )
    start: str | None = Field(
        None, alias="from", description="The first image's label; the model's first one if absent."
    )
    to: str | None = Field(
        None,
        description="The last image's label; that of the first one if absent. The label changes in the "
        "middle.",
    )
    steps: int | None = Field(
        None, ge=2, le=64, description="The number of images, with both ends; 9 if absent."
    )
    method: Literal["spherical", "linear"] | None = Field(
        None, description="The way from one latent to the other; `spherical` if absent."
    )


class InterpolateResponse(_Body):
    """The images from one end to the other. to_seed: null if both ends come from one seed."""

    model: str
    version: int
    seed: int
    to_seed: int | None
    method: Literal["spherical", "linear"]
    images: list[GeneratedImage]


class EncodeQuery(_Body):
    """The query of /encode, /decode and /reconstruct."""

    model: str | None = Field(None, description="An encoder; the default one if absent.")
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )
    label: str | None = Field(
        None,
        description="The label of every image, or one for each, separated by commas; if absent, the default "
        "classifier reads them.",
    )


class EncodeResponse(_Body):
    """The latents of each image, in the order of the request."""

    model: str
    version: int
    classifier: str | None = Field(description="The model that read the labels; null if none did.")
    labels: list[str] | None = Field(description="The label of each image; null if the model has none.")
    latents: list[list[float]] = Field(description="The model's first output: what /decode reads.")
    outputs: dict[str, list[list[float]]] = Field(description="Each of the model's outputs by its name.")


class DecodeRequest(_Body):
    """Latents to decode."""

    latents: Rows = Field(
        description="A list of numbers, a list of such lists, or base64 of raw float32, as /encode returns "
        "them."
    )
    labels: Annotated[str | int | list[str | int] | None, NotBoolean] = Field(
        None,
        description="The label of every image, or a list with one for each; `mixed`, the default: image i "
        "gets the i-th label, wrapping around.",
    )


class DecodeResponse(_Body):
    """One image for each row of latents."""

    model: str
    version: int
    images: list[GeneratedImage]


class ReconstructResponse(DecodeResponse):
    """What the decoder, `model`, makes of each image's latents."""

    encoder: str
    classifier: str | None = Field(description="The model that read the labels; null if none did.")


class ExplainQuery(_Body):
    """The query of /explain. A field that the chosen method does not read is ignored."""

    model: str | None = Field(None, description="A classifier; the default one if absent.")
    version: int | None = Field(
        None, ge=1, le=MAX_VERSION, description="A version of it; the latest if absent."
    )
    method: Literal["occlusion", "lime", "integrated_gradients"] | None = Field(
        None, description="How the explanation is made; `occlusion` if absent."
    )
    target: str | None = Field(
        None,
        description="The label whose probability is explained; each image's most probable one if absent.",
    )
    patch: int | None = Field(
        None,
        ge=1,
        description="Of occlusion and LIME: the side in pixels of the squares that are replaced by the "
        "background; 4 if absent.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Of occlusion: the pixels from one square to the next; half of patch if absent.",
    )
    samples: int | None = Field(
        None, ge=1, description="Of LIME: the number of perturbed copies of an image; 200 if absent."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of LIME: the same seed gives the same copies; 0 if absent."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Of integrated gradients: the number of gradients per image; 64 if absent.",
    )
    show_overlay: bool | None = Field(
        None, description="Also return each image with the explanation laid over it, as in `image/png`."
    )


class Explanation(_Body):
    """What speaks for a label in one image."""

    target: str = Field(description="The label.")
    probability: float = Field(description="Its probability.")
    attributions: list[list[float]] = Field(
        description="A number for each pixel, rows of columns: above 0 where the image speaks for the label, "
        "below 0 where against it. In units of probability."
    )
    overlay: str | None = Field(None, description="With show_overlay, base64 of a PNG.")


class ExplainResponse(_Body):
    """One explanation per image, in the order of the request, and what they cost together."""

    model: str
    version: int
    method: Literal["occlusion", "lime", "integrated_gradients"]
    explanations: list[Explanation]
    rows: int = Field(description="The rows that the models ran.")
    milliseconds: float = Field(description="From the first row that was queued to the last result.")


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
    preprocess: Preprocess = Field(
        description="How a picture becomes a row of the input. `none`: the model accepts rows only."
    )
    multiply_adds: int | None = Field(
        description="The cost of one row: multiplications in convolutions and matrix products, each with its "
        "addition. null if the manifest's metrics do not tell it."
    )
    answered_by: str = Field(
        description="The model that answers requests for this one if they pin no version: itself, or its "
        "variant on fewer bits that the setting `prefer` names."
    )


class ModelDetail(ModelSummary):
    """A model version in full."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    labels: list[str]
    metrics: dict[str, float | int | str]
    sha256: str
    command: str
    batch_sizes: list[int] = Field(
        description="The batch sizes that the model runs in here; a batch is padded to the next one."
    )
    slow_batch_sizes: list[int] = Field(
        description="Sizes that are not used, because a row takes longer in them than in a smaller batch."
    )
    differing_batch_sizes: list[int] = Field(
        description="Sizes that are not used, because a row has other bits in them than in batches of "
        "`fixed_batch_size` rows: of a model that `determinism` selects."
    )
    card: str = Field(description="The model card, Markdown.")


class GraphLayer(_Body):
    """A node of a model's graph."""

    name: str
    operator: str
    inputs: list[str] = Field(description="The names of the layers that it reads from.")
    shape: list[int] | None = Field(
        description="Of its output; -1 is the batch axis. null if it cannot be told from the graph."
    )
    parameters: int = Field(description="Elements of its weights.")
    multiply_adds: int | None = Field(
        description="Of one row: multiplications in convolutions and matrix products, each with its "
        "addition. null if a shape is unknown."
    )


class ModelGraph(_Body):
    """A model version's layers, in the order in which they run."""

    name: str
    version: int
    layers: list[GraphLayer]
    parameters: int
    multiply_adds: int | None = Field(description="The sum of the layers'; null if one is unknown.")


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
