"""The hot routes' part of the OpenAPI document: FastAPI cannot see them, so it is written here.

The bodies' schemas come from the models that validate them; the examples are real.
"""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.http.routes import generate
from service.http.routes.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
)
from service.http.routes.shared import TIMEOUT

REF = "#/components/schemas/{model}"
Json = dict[str, Any]

SEVEN = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAwUlEQVR42mNgGDaAEUKFpD77sfTFHeyS9xQYGBg+X4UKPuk6w8DA"
    "wMDAAuGm6l/TMnSweCzLwPDntSTDozPIOhkYGBgYBA3PmDIw/Lh1XShnGi5nBP+9KIRLTuzl/2AokwlDMlv0/U1cGq1//rPD6fHW"
    "f7tZcclxnv1hhVNj3b9tOOW8f3+wxCUnfPffMlxyzKf/3VbGJan2758vLjn5B/+KGXF78Z8JLjnbT+iSSGFrw8Nw9wuKJAsy56Lz"
    "O+ITGABpETyQcCy90wAAAABJRU5ErkJggg=="
)
"""The first image of MNIST's test set, a seven, as base64 of a PNG."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_MODEL = ("model", "The model's name; the default one if absent.", {"type": "string"})
_VERSION = ("version", "A version of it; the latest if absent.", {"type": "integer", "minimum": 1})
_TOP_K = (
    "top_k",
    "Only the k largest probabilities of each image.",
    {"type": "integer", "minimum": 1},
)


_TIMEOUT: Json = {
    "name": TIMEOUT.decode(),
    "in": "header",
    "description": "Seconds that the answer may take; at most, and if absent, the service's own deadline.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def describe_hot_routes(app: FastAPI, *, with_keys: bool = False) -> None:
    """Make the application's OpenAPI document name the hot routes too, and the API key if one is needed."""
    describe_the_rest = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = describe_the_rest()
            document["paths"] = _paths() | document["paths"]
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(_schemas())
            if with_keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way


def _schemas() -> Json:
    bodies = (ClassifyRequest, ClassifyResponse, GenerateRequest, GenerateResponse, ErrorResponse)
    _, document = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    schemas: Json = document["$defs"]
    return schemas


def _paths() -> Json:
    return {
        "/classify": {"post": _classify()},
        "/generate": {"get": _generate_get(), "post": _generate_post()},
    }


def _classify() -> Json:
    return {
        "tags": ["inference"],
        "summary": "Classify images",
        "description": "Images as raw pixels (rows of 28 x 28 bytes, one after another), as one PNG or JPEG "
        "of any size, as files of a form, or as JSON. PNG and JPEG are turned into digits in MNIST's way: "
        "grey, light on dark, cropped, fitted to 20 x 20, centred by mass; a 28 x 28 PNG with a dark "
        "ground is taken as it is.\n\n`Accept: application/octet-stream` answers with the probabilities "
        "alone, little-endian float32, (images, labels).",
        "parameters": [_query(*_MODEL), _query(*_VERSION), _query(*_TOP_K), _TIMEOUT],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF.format(model="ClassifyRequest")},
                    "examples": {"a seven, base64 of a PNG": {"value": {"images": [SEVEN]}}},
                },
                "application/octet-stream": _BINARY,
                "image/png": _BINARY,
                "image/jpeg": _BINARY,
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "images": {"type": "array", "items": {"type": "string", "format": "binary"}}
                        },
                    }
                },
            },
        },
        "responses": _responses(
            {
                "application/json": {"schema": {"$ref": REF.format(model="ClassifyResponse")}},
                "application/octet-stream": _BINARY,
            }
        ),
    }


def _generate_get() -> Json:
    fields = GenerateRequest.model_json_schema()["properties"]
    return {
        "tags": ["inference"],
        "summary": "Generate images",
        "description": "Answers with a PNG (several images as one sheet), with JSON (a PNG for each) or with "
        "raw pixels, as Accept asks. The same seed gives the same bytes.",
        "parameters": [
            _query(name, fields[name]["description"], _plain(fields[name]), _EXAMPLES.get(name))
            for name in generate.QUERY
        ]
        + [_TIMEOUT],
        "responses": _responses(_generated()),
    }


def _generate_post() -> Json:
    described = _generate_get()
    described["description"] += " Latents may be sent as JSON, or raw: rows of little-endian float32."
    described["requestBody"] = {
        "content": {
            "application/json": {
                "schema": {"$ref": REF.format(model="GenerateRequest")},
                "examples": {"sixteen sevens": {"value": {"label": "7", "count": 16, "seed": 1}}},
            },
            "application/octet-stream": _BINARY,
        }
    }
    return described


_EXAMPLES: Json = {"count": 16, "label": "7", "seed": 1}


def _generated() -> Json:
    return {
        "image/png": _BINARY,
        "application/json": {"schema": {"$ref": REF.format(model="GenerateResponse")}},
        "application/octet-stream": _BINARY,
    }


def _query(name: str, description: str, schema: Json, example: object = None) -> Json:
    parameter: Json = {"name": name, "in": "query", "description": description, "schema": schema}
    return parameter if example is None else parameter | {"example": example}


def _plain(field: Json) -> Json:
    """A query parameter's schema: it is absent rather than null."""
    choices = [choice for choice in field.get("anyOf", []) if choice.get("type") != "null"]
    return choices[0] if choices else {"type": field["type"]}


def _responses(content: Json) -> Json:
    error = {"application/json": {"schema": {"$ref": REF.format(model="ErrorResponse")}}}
    reasons = {
        "400": "Something in the request is not as expected; the error says what.",
        "404": "No such model.",
        "406": "No such answer as Accept asks for.",
        "413": "Too many bytes, pixels or images.",
        "415": "A Content-Type that cannot be read.",
        "503": "Too many rows wait; Retry-After says when to come back.",
        "504": "The deadline passed before the request was run.",
    }
    timing = {
        "description": "Milliseconds in the queue and on the device, and the rows of the batch.",
        "schema": {"type": "string"},
        "example": 'queue;dur=0.105, compute;dur=1.442, batch;desc="37"',
    }
    headers = {"Server-Timing": timing}
    answers: Json = {"200": {"description": "The answer.", "headers": headers, "content": content}}
    return answers | {code: {"description": text, "content": error} for code, text in reasons.items()}
