"""Objects of an OpenAPI document, made from our own tables: errors, headers, models of bodies and queries."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from service.errors import InkserveError
from service.http.error_responses import ErrorRow, row_of
from service.http.headers import Header
from service.http.routes.schemas import ErrorResponse
from service.http.types import JSON

Json = dict[str, Any]

Responses = dict[int | str, Json]
"""Responses by status, as in FastAPI's `responses`."""

REF = "#/components/schemas/{model}"

BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
"""The content of a body that is not text; Swagger UI offers to choose a file."""


def describe_errors(*kinds: type[InkserveError]) -> Responses:
    """Return the responses to these errors, by status, as an operation's `responses` hold them."""
    return describe_rows([row_of(kind) for kind in kinds])


def describe_rows(rows: Sequence[ErrorRow]) -> Responses:
    """Return the responses of these rows of the error table; rows of the same status share one."""
    described: Responses = {}
    for row in rows:
        same = described.setdefault(
            row.status, {"description": "", "headers": {}, "content": {JSON: json_body(ErrorResponse)}}
        )
        if row.reason not in same["description"]:
            same["description"] = f"{same['description']} {row.reason}".strip()
        for header in (header for header, _ in row.headers):
            always = all(header in dict(each.headers) for each in rows if each.status == row.status)
            same["headers"].update([header_entry(header, required=always)])
    return described


def json_body(body: type[BaseModel]) -> Json:
    """Return the content of a JSON body; the document's components must hold the model's schema."""
    return {"schema": {"$ref": REF.format(model=body.__name__)}}


def query_parameters(schema: Json, names: Sequence[str], filled_in: Mapping[str, object]) -> list[Json]:
    """Return the parameters of a query that a model's schema describes. filled_in: values for /docs."""
    fields = schema["properties"]
    parameters = []
    for name in names:
        parameter: Json = {"name": name, "in": "query", "description": fields[name]["description"]}
        if fields[name].get("deprecated"):
            parameter["deprecated"] = True
        if name in filled_in:
            parameter["example"] = filled_in[name]
        parameters.append(parameter | {"schema": _plain(fields[name])})
    return parameters


def by_text(responses: Responses) -> dict[str, Json]:
    """Return the responses by their status as text, as a document has them."""
    return {str(status): response for status, response in responses.items()}


def _plain(field: Json) -> Json:
    """Return a query parameter's schema: it may be absent, but never null."""
    if "enum" in field:
        return {"enum": list(dict.fromkeys(_as_text(value) for value in field["enum"] if value is not None))}
    choices = [choice for choice in field.get("anyOf", []) if choice.get("type") != "null"]
    words = ("default", "deprecated", "description", "title")
    schema: Json = choices[0] if choices else {key: field[key] for key in field if key not in words}
    return schema


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def header_parameter(header: Header) -> Json:
    """Return the description of a request's header."""
    return {
        "name": header.name,
        "in": "header",
        "description": header.description,
        "schema": dict(header.schema),
    }


def header_entry(header: Header, *, required: bool) -> tuple[str, Json]:
    """Return the name and the description of a response's header."""
    described: Json = {"description": header.description, "schema": dict(header.schema)}
    if required:
        described["required"] = True
    if header.example is not None:
        described["example"] = header.example
    return header.name, described
