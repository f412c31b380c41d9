"""The schemas of JSON bodies and of /generate's query, narrowed to the models that are served.

What a schema allows is accepted: a generated client or a fuzzer finds no value that gets 400. The limit of
rows is left out, because more than that are 413: too many, not wrong.
"""

from collections.abc import Iterable, Mapping

from service.errors import ModelNotFound
from service.http.routes.explain import MAX_ROWS
from service.http.routes.generate import MIXED
from service.http.routes.openapi_objects import Json
from service.http.routes.schemas import (
    CaptionQuery,
    ClassifyQuery,
    ClassifyRequest,
    DecodeRequest,
    EncodeQuery,
    ExplainQuery,
    GenerateRequest,
    InterpolateQuery,
    SearchQuery,
)
from service.http.routes.verification import mismatch
from service.models.catalogue import Catalogue
from service.models.manifest import ENCODER_SUFFIX, STYLE_LEVELS, STYLES, Manifest, Task, TensorSpec
from service.settings import Settings

PICTURE = "base64-picture"
"""The format of a string that holds a PNG, a JPEG or raw pixels as base64."""

EXCLUSIVE = (
    *(("label", "digit"), ("z", "seed"), ("z", "count")),
    *(("prompt", "label"), ("prompt", "digit"), ("prompt", "z"), ("prompt", "grid"), ("reject", "z")),
)
"""Fields of GenerateRequest that say the same thing twice."""

PROMPTS = "^(({}) )?({})$".format(
    ") )?((".join("|".join(ends) for ends in STYLES.values()),
    "|".join(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")),
)
"""Prompts that every search model of digits reads; it reads many more than a pattern could say."""

LARGEST = 1e6
"""Of a latent, in the description: they are drawn from a normal distribution."""


def classify_query_schema(models: Catalogue) -> Json:
    """Return the schema of ClassifyQuery, with top_k up to the most labels that a classifier has."""
    schema = ClassifyQuery.model_json_schema()
    properties = schema["properties"]
    properties["model"]["anyOf"][0] |= models_of(models, "classification")
    most = max((len(each.labels) for each in _of(models, "classification")), default=0)
    if most:
        properties["top_k"]["anyOf"][0]["maximum"] = most
    return schema


def classify_schema(models: Catalogue) -> Json:
    """Return the schema of ClassifyRequest."""
    schema = ClassifyRequest.model_json_schema()
    shapes = {manifest.inputs[0].shape[1:] for manifest in _of(models, "classification")}
    kinds = {manifest.inputs[0].datatype for manifest in _of(models, "classification")}
    if len(shapes) == 1 and kinds == {"UINT8"}:
        nested = _array_of(shapes.pop())
        picture: Json = {"type": "string", "format": PICTURE}
        several = [{"type": "array", "items": each, "minItems": 1} for each in (nested, picture)]
        schema["properties"]["images"] |= {"anyOf": [nested, picture, *several]}
    return schema


def generate_schema(models: Catalogue, settings: Settings) -> Json:
    """Return the schema of GenerateRequest: for the default generator, with a latent of its size."""
    schema = GenerateRequest.model_json_schema()
    properties = schema["properties"]
    labels = _labels(_of(models, "generation"))
    for name in ("label", "digit") if labels else ():
        properties[name].pop("anyOf")
        properties[name]["enum"] = [*labels, None]
    properties["count"]["anyOf"][0]["maximum"] = settings.max_request_rows
    z = _latent(models, settings.default_generator)
    if z is not None:
        properties["z"] |= _latents(z.shape[1])
    properties["model"]["anyOf"][0] |= models_of(models, "generation")
    _narrow_verification(properties, models, settings)
    _narrow_prompt(properties, models)
    schema["not"] = {"anyOf": [{"required": [*pair]} for pair in EXCLUSIVE]}
    return schema


def search_query_schema(models: Catalogue) -> Json:
    """Return the schema of SearchQuery, with count up to the most images that a search returns."""
    schema = SearchQuery.model_json_schema()
    properties = schema["properties"]
    properties["prompt"]["pattern"] = PROMPTS
    properties["model"]["anyOf"][0] |= models_of(models, "search")
    sizes = [spec.shape[1] for each in _of(models, "search") for spec in each.outputs if spec.name == "index"]
    if sizes:
        properties["count"]["anyOf"][0]["maximum"] = min(sizes)
    return schema


def caption_query_schema(models: Catalogue) -> Json:
    """Return the schema of CaptionQuery, with top_k up to the number of captions that a model can give."""
    schema = CaptionQuery.model_json_schema()
    properties = schema["properties"]
    properties["model"]["anyOf"][0] |= models_of(models, "captioning")
    sizes = [len(each.labels) * STYLE_LEVELS ** len(STYLES) for each in _of(models, "captioning")]
    if sizes:
        properties["top_k"]["anyOf"][0]["maximum"] = min(sizes)
    return schema


def encode_query_schema(models: Catalogue) -> Json:
    """Return the schema of EncodeQuery, with one label for all images."""
    schema = EncodeQuery.model_json_schema()
    properties = schema["properties"]
    properties["model"]["anyOf"][0] |= models_of(models, "encoding")
    labels = _common_labels(_of(models, "encoding"))
    if labels:
        properties["label"]["enum"] = [*labels, None]
    else:
        properties.pop("label")
    return schema


def interpolate_query_schema(models: Catalogue, settings: Settings) -> Json:
    """Return the schema of InterpolateQuery, with the labels that every generator knows."""
    schema = InterpolateQuery.model_json_schema()
    properties = schema["properties"]
    properties["model"]["anyOf"][0] |= models_of(models, "generation")
    steps = properties["steps"]["anyOf"][0]
    steps["maximum"] = min(steps["maximum"], settings.max_request_rows)
    labels = _common_labels(_of(models, "generation"))
    for name in ("from", "to"):
        if labels:
            properties[name]["enum"] = [*labels, None]
        else:
            properties.pop(name)
    return schema


def decode_schema(models: Catalogue, settings: Settings) -> Json:
    """Return the schema of DecodeRequest: for the default encoder's generator, with a latent of its size."""
    schema = DecodeRequest.model_json_schema()
    properties = schema["properties"]
    manifest = _decoder(models, settings)
    z = None if manifest is None else manifest.input("z")
    if manifest is None or z is None:
        return schema
    properties["latents"] |= {"anyOf": _latents(z.shape[1])["anyOf"][:2]}
    labels = _labels([manifest])
    if not labels:
        properties.pop("labels")
        return schema
    one: Json = {"enum": [*labels, None]}
    several: Json = {"type": "array", "items": {"enum": [*manifest.labels]}, "minItems": 1, "maxItems": 1}
    # A list has one label for each row, which a schema can say only of one row.
    properties["labels"] = {"description": properties["labels"]["description"], "anyOf": [one, several]}
    single = _latents(z.shape[1])["anyOf"][0]
    schema["anyOf"] = [
        {"properties": {"labels": one}},
        {"properties": {"labels": several, "latents": single}},
    ]
    return schema


def _decoder(models: Catalogue, settings: Settings) -> Manifest | None:
    """Return the generator that /decode uses for requests that name none, or None."""
    try:
        encoder = (
            models.default("encoding")
            if settings.default_encoder is None
            else models.find(settings.default_encoder)
        )
        name = encoder.manifest.name.removesuffix(ENCODER_SUFFIX)
        return models.find(name, encoder.manifest.version).manifest
    except ModelNotFound:
        return None


def _common_labels(manifests: Iterable[Manifest]) -> list[str]:
    """Return the labels that all of these models know."""
    known = [each.labels if each.input("label") is not None else () for each in manifests]
    return [label for label in known[0] if all(label in each for each in known)] if known else []


def _narrow_verification(properties: Json, models: Catalogue, settings: Settings) -> None:
    """Describe the classifiers that can judge every generator's images."""
    generators = [*_of(models, "generation")]
    judges = [
        each.name
        for each in _of(models, "classification")
        if not any(generator.input("label") is None or mismatch(each, generator) for generator in generators)
    ]
    default = settings.default_classifier
    if default is None and judges:
        default = models.default("classification").manifest.name
    properties["verify"].pop("anyOf")
    if default in judges:
        properties["verify"]["enum"] = [True, False, "true", "false", *dict.fromkeys(judges), None]
    else:
        properties["verify"]["enum"] = [False, "false", *dict.fromkeys(judges), None]
        properties["reject"]["anyOf"][0] |= {"enum": [False]}


def explain_query_schema(models: Catalogue) -> Json:
    """Return the schema of ExplainQuery, with the classifiers' labels and squares up to an image."""
    schema = ExplainQuery.model_json_schema()
    properties = schema["properties"]
    properties["model"]["anyOf"][0] |= models_of(models, "classification")
    classifiers = [*_of(models, "classification")]
    labels = [*dict.fromkeys(label for each in classifiers for label in each.labels)]
    if labels:
        properties["target"]["anyOf"][0]["enum"] = labels
    layouts = [layout for each in classifiers if (layout := each.inputs[0].image_layout())]
    if layouts:
        for name in ("patch", "stride"):
            properties[name]["anyOf"][0]["maximum"] = min(min(each.height, each.width) for each in layouts)
    properties["samples"]["anyOf"][0]["maximum"] = MAX_ROWS - 1
    return schema


def _narrow_prompt(properties: Json, models: Catalogue) -> None:
    """Describe the prompts that are surely understood; none if no model reads them."""
    if any(_of(models, "search")):
        properties["prompt"]["anyOf"][0]["pattern"] = PROMPTS
    else:
        properties.pop("prompt")


def _latent(models: Catalogue, default: str | None) -> TensorSpec | None:
    try:
        info = models.default("generation") if default is None else models.find(default)
    except ModelNotFound:
        return None
    return info.manifest.input("z")


def models_of(models: Catalogue, task: Task) -> Json:
    """Return the part of a schema that allows every name but those of models for other tasks."""
    others = sorted({info.manifest.name for info in models if info.manifest.task != task})
    return {"not": {"enum": others}} if others else {}


def _of(models: Catalogue, task: Task) -> Iterable[Manifest]:
    return (info.manifest for info in models if info.manifest.task == task)


def _labels(generators: Iterable[Manifest]) -> list[str | int]:
    """Return what a request may give as its label: names, `mixed`, and numbers for names that are numbers."""
    names = dict.fromkeys(
        label for each in generators if each.input("label") is not None for label in each.labels
    )
    numbers = [int(name) for name in names if name.isdecimal() and str(int(name)) == name]
    return [*names, MIXED, *numbers] if names else []


def _array_of(shape: tuple[int, ...]) -> Mapping[str, object]:
    """Return the schema of one image as nested lists."""
    described: Mapping[str, object] = {"type": "integer", "minimum": 0, "maximum": 255}
    for size in reversed(shape):
        described = {"type": "array", "items": described, "minItems": size, "maxItems": size}
    return described


def _latents(size: int) -> Json:
    number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    row = {"type": "array", "items": number, "minItems": size, "maxItems": size}
    rows = {"type": "array", "items": row, "minItems": 1}
    return {"anyOf": [row, rows, {"type": "null"}]}
