"""The OpenAPI description of the routes that run models, which do without FastAPI."""

from collections.abc import Mapping

from service.http import headers
from service.http.routes import classify, examples, explain, generate, search
from service.http.routes.openapi_bodies import (
    caption_query_schema,
    classify_query_schema,
    explain_query_schema,
    generate_schema,
    search_query_schema,
)
from service.http.routes.openapi_latents import latent_paths
from service.http.routes.openapi_objects import (
    BINARY,
    Json,
    header_parameter,
    json_body,
    query_parameters,
)
from service.http.routes.openapi_responses import (
    SEARCH_ERRORS,
    cached_responses,
    inference_responses,
    named_example,
)
from service.http.routes.openapi_v2 import infer_paths
from service.http.routes.prompts import EXAMPLE
from service.http.routes.schemas import (
    CaptionResponse,
    ClassifyRequest,
    ClassifyResponse,
    ExplainResponse,
    GenerateRequest,
    GenerateResponse,
    SearchResponse,
)
from service.http.types import FORM, JSON
from service.models.catalogue import Catalogue
from service.settings import Settings

DOCUMENTED_QUERY = tuple(name for name in generate.QUERY if name not in ("digit", "prompt"))
"""Without the other names of a label: a query's description cannot say that it is one or the other."""

_FILES: Json = {
    "schema": {
        "type": "object",
        "properties": {
            "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
        },
        "required": ["images"],
        "additionalProperties": False,
    }
}


def inference_paths(models: Catalogue, settings: Settings) -> Json:
    """Return the paths of the document. models, settings: for examples that get 200."""
    fields = examples.generate_fields(models, settings)
    get = _generate_get(generate_schema(models, settings), fields)
    paths: Json = {
        "/classify": {"post": _classify(models)},
        "/generate": {"get": _cached(get), "post": _generate_post(get, fields)},
        "/search": {"get": _search(models), "post": _describe(models)},
        **latent_paths(models, settings, _classify(models)),
        "/explain": {"post": _explain(models)},
        **infer_paths(models),
    }
    operations = [operation for path in paths.values() for operation in path.values()]
    for parameter in (each for operation in operations for each in operation["parameters"]):
        if parameter["name"] == headers.TIMEOUT.name:
            parameter["schema"] = {**headers.TIMEOUT.schema, "maximum": settings.request_timeout_seconds}
    return paths


def _classify(models: Catalogue) -> Json:
    special: Json = {
        JSON: json_body(ClassifyRequest) | named_example("a seven, as PNG", examples.classify_body()),
        FORM: _FILES,
    }
    kinds = (JSON, *(kind for kind in classify.ACCEPTED if kind != JSON))  # /docs offers the first
    return {
        "tags": ["inference"],
        "summary": "Classify images",
        "operationId": "classify",
        "description": "The body holds raw rows, one picture of any size, a form of files, or JSON. Raw "
        "rows follow one another without separators, for MNIST models 28 x 28 bytes each. For these models a "
        "picture is normalised like MNIST: grey, light on dark, cropped, fitted to 20 x 20, centred by "
        "mass; a 28 x 28 PNG on a dark background stays as it is.\n\nWith `Accept: application/octet-stream` "
        "the response is only the probabilities, little-endian float32, (images, labels). A body without a "
        "Content-Type is read as a picture if it starts like one, otherwise as raw rows. A body may be "
        "compressed (Content-Encoding gzip or deflate).",
        "parameters": [
            *query_parameters(classify_query_schema(models), classify.QUERY, {}),
            header_parameter(headers.TIMEOUT),
            header_parameter(headers.PRIORITY),
            header_parameter(headers.LOAD_FORMAT),
        ],
        "requestBody": {
            "required": True,
            "content": {kind: special.get(kind, BINARY) for kind in kinds},
        },
        "responses": inference_responses(classify.OFFERED, ClassifyResponse, ()),
    }


def _generate_get(schema: Json, fields: Mapping[str, object]) -> Json:
    return {
        "tags": ["inference"],
        "summary": "Generate images",
        "operationId": "generate",
        "description": "The response is a PNG (several images form one sheet), JSON (a PNG for each image) "
        "or raw pixels, depending on Accept. The same seed gives the same images. `verify` asks a "
        "classifier what it reads in them.",
        "parameters": [
            *query_parameters(schema, DOCUMENTED_QUERY, fields),
            header_parameter(headers.TIMEOUT),
            header_parameter(headers.PRIORITY),
            header_parameter(headers.LOAD_FORMAT),
        ],
        "responses": inference_responses(
            generate.OFFERED,
            GenerateResponse,
            (headers.SEED, headers.UNDERSTOOD, headers.CLASSIFIER, headers.AGREEMENT, headers.READ),
        ),
    }


def _cached(get: Json) -> Json:
    """Return a seeded operation with what caches need."""
    return get | {
        "parameters": [*get["parameters"], header_parameter(headers.IF_NONE_MATCH)],
        "responses": cached_responses(get["responses"]),
    }


def _generate_post(get: Json, fields: Mapping[str, object]) -> Json:
    """Describe the fields in the body only: one in the query and in the body would be a mistake."""
    described = get | {"parameters": [each for each in get["parameters"] if each["in"] != "query"]}
    described["operationId"] = "generate_from_body"
    described["description"] += (
        " The body holds the fields as JSON, or raw latents: rows of little-endian float32. A field may be "
        "in the query instead, but not in both; beside raw latents, `model`, `version` and `label` are. In "
        "JSON, `z` may also be base64 of raw latents."
    )
    content: Json = dict.fromkeys(generate.ACCEPTED, BINARY)
    content[JSON] = json_body(GenerateRequest) | named_example("seeded images", fields)
    described["requestBody"] = {"content": content}
    return described


def _search(models: Catalogue) -> Json:
    parameters = query_parameters(
        search_query_schema(models), search.QUERY, {"prompt": EXAMPLE.removeprefix("a ")}
    )
    parameters[search.QUERY.index("prompt")]["required"] = True
    return {
        "tags": ["inference"],
        "summary": "Search images by text",
        "operationId": "search",
        "description": "The response holds the images of the model's gallery that are nearest to the prompt, "
        "as JSON or as one PNG. A prompt is a digit, as a word or a numeral, and its style: thin or thick, "
        "upright or slanted, small or large. Other words, orders and phrases than the pattern's are "
        "understood too; what is not gets 400.",
        "parameters": [
            *parameters,
            header_parameter(headers.TIMEOUT),
            header_parameter(headers.PRIORITY),
            header_parameter(headers.LOAD_FORMAT),
        ],
        "responses": inference_responses(
            search.OFFERED, SearchResponse, (headers.UNDERSTOOD,), errors=SEARCH_ERRORS, raw=False
        ),
    }


def _describe(models: Catalogue) -> Json:
    posted = _classify(models)
    return posted | {
        "summary": "Describe images by text",
        "operationId": "describe",
        "description": "The body is that of /classify. For each image the response says its label and its "
        "style, and the captions that suit it best.",
        "parameters": [
            *query_parameters(caption_query_schema(models), search.CAPTION_QUERY, {}),
            *(each for each in posted["parameters"] if each["in"] == "header"),
        ],
        "responses": inference_responses(search.CAPTIONS_OFFERED, CaptionResponse, (), raw=False),
    }


def _explain(models: Catalogue) -> Json:
    posted = _classify(models)
    unread = headers.PRIORITY.name
    return posted | {
        "summary": "Explain what a classifier reads in images",
        "operationId": "explain",
        "description": "The body is that of /classify, of at most 16 images. For each image the response "
        "says which pixels speak for a label and which against it: by occlusion, by LIME, or by integrated "
        "gradients, for classifiers that have a gradient model. With `Accept: image/png` it is a picture of "
        "the images, in red where they speak for the label and in blue where against it. One request may "
        "take at most 4,096 rows, which run at low priority.",
        "parameters": [
            *query_parameters(explain_query_schema(models), explain.QUERY, {}),
            *(each for each in posted["parameters"] if each["in"] == "header" and each["name"] != unread),
        ],
        "responses": inference_responses(
            explain.OFFERED, ExplainResponse, (headers.EXPLAINED, headers.COST), raw=False
        ),
    }
