"""The OpenAPI description of /encode, /decode, /reconstruct and /interpolate."""

from collections.abc import Mapping

from service.errors import ModelNotFound
from service.http import headers
from service.http.routes import interpolate, latents
from service.http.routes.openapi_bodies import encode_query_schema, interpolate_query_schema
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
from service.http.routes.schemas import (
    DecodeRequest,
    DecodeResponse,
    EncodeQuery,
    EncodeResponse,
    InterpolateResponse,
    ReconstructResponse,
)
from service.http.types import JSON
from service.models.catalogue import Catalogue
from service.models.manifest import ENCODER_SUFFIX
from service.settings import Settings

_HEADERS = (headers.LABELS, headers.CLASSIFIER)


def latent_paths(models: Catalogue, settings: Settings, classify: Json) -> Json:
    """Return these paths of the document. classify: the operation whose body two of them share."""
    return {
        "/encode": {"post": _encode(models, classify)},
        "/decode": {"post": _decode(models, settings)},
        "/reconstruct": {"post": _reconstruct(models, classify)},
        "/interpolate": {"get": _interpolate(models, settings)},
    }


def _encode(models: Catalogue, classify: Json) -> Json:
    return classify | {
        "summary": "Encode images as latents",
        "operationId": "encode",
        "description": "The body is that of /classify. The response holds each image's latents, from which "
        "/decode draws it again, as JSON, raw float32 or a .npy file. An encoder that needs a label gets "
        "the one that the query names, or the one that the default classifier reads.",
        "parameters": _parameters(encode_query_schema(models)),
        "responses": inference_responses(latents.ENCODE_OFFERED, EncodeResponse, _HEADERS),
    }


def _reconstruct(models: Catalogue, classify: Json) -> Json:
    return classify | {
        "summary": "Encode and decode images",
        "operationId": "reconstruct",
        "description": "The body is that of /classify. The response holds what the generator of the encoder "
        "draws from each image's latents, as a PNG (several images form one sheet), JSON or raw pixels.",
        "parameters": _parameters(encode_query_schema(models)),
        "responses": inference_responses(latents.IMAGES_OFFERED, ReconstructResponse, _HEADERS),
    }


def _decode(models: Catalogue, settings: Settings) -> Json:
    schema = EncodeQuery.model_json_schema()
    schema["properties"]["model"]["description"] = "A generator; that of the default encoder if absent."
    content: Json = dict.fromkeys(latents.DECODE_ACCEPTED, BINARY)
    content[JSON] = json_body(DecodeRequest) | named_example("zeros", _zeros(models, settings))
    return {
        "tags": ["inference"],
        "summary": "Decode latents",
        "operationId": "decode",
        "description": "The body holds latents, as /encode returns them: JSON, raw rows of little-endian "
        "float32, or a .npy file. The labels are in the JSON, or in `label` in the query, as for /encode. "
        "The response holds one image for each row, as a PNG (several images form one sheet), JSON or raw "
        "pixels.",
        "parameters": _parameters(schema, ("version",)),
        "requestBody": {"required": True, "content": content},
        "responses": inference_responses(latents.IMAGES_OFFERED, DecodeResponse, (headers.LABELS,)),
    }


def _interpolate(models: Catalogue, settings: Settings) -> Json:
    schema = interpolate_query_schema(models, settings)
    filled_in: dict[str, object] = {"seed": 1, "steps": schema["properties"]["steps"]["anyOf"][0]["maximum"]}
    filled_in["steps"] = min(int(str(filled_in["steps"])), interpolate.STEPS)
    names = [name for name in interpolate.QUERY if name in schema["properties"]]
    if {"from", "to"} <= {*names}:
        known = [label for label in schema["properties"]["from"]["enum"] if label is not None]
        filled_in |= {"from": known[3 % len(known)], "to": known[8 % len(known)]}
    return {
        "tags": ["inference"],
        "summary": "Interpolate between two images",
        "operationId": "interpolate",
        "description": "The response holds the images from one latent to another in equal steps: a PNG of "
        "one row, an animated WebP or PNG, JSON or raw pixels. The latent goes along the sphere, or "
        "straight; the label changes in the middle, because the models know none between two. The same "
        "seeds give the same images.",
        "parameters": [
            *query_parameters(schema, names, filled_in),
            *_heads(),
            header_parameter(headers.IF_NONE_MATCH),
        ],
        "responses": cached_responses(
            inference_responses(
                interpolate.OFFERED,
                InterpolateResponse,
                (headers.SEED, headers.LABELS),
                errors=SEARCH_ERRORS,
            )
        ),
    }


def _parameters(schema: Json, names: tuple[str, ...] = latents.QUERY) -> list[Json]:
    known = [name for name in names if name in schema["properties"]]
    return [*query_parameters(schema, known, {}), *_heads()]


def _heads() -> list[Json]:
    return [header_parameter(each) for each in (headers.TIMEOUT, headers.PRIORITY, headers.LOAD_FORMAT)]


def _zeros(models: Catalogue, settings: Settings) -> Mapping[str, object]:
    """Return a JSON body of /decode: the latent in the middle of all."""
    try:
        default = settings.default_encoder
        encoder = (models.default("encoding") if default is None else models.find(default)).manifest
        decoder = models.find(encoder.name.removesuffix(ENCODER_SUFFIX), encoder.version).manifest
    except ModelNotFound:
        return {"latents": [0.0]}
    z = decoder.input("z")
    size = 1 if z is None else z.shape[1]
    labels = (
        {}
        if decoder.input("label") is None
        else {"labels": "7" if "7" in decoder.labels else decoder.labels[0]}
    )
    return {"latents": [0.0] * size, **labels}
