"""Responses compared with what an OpenAPI document says of them."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

OURS = re.compile(
    "inkserve-.+|server-timing|x-request-id|retry-after|www-authenticate|allow|traceresponse", re.IGNORECASE
)
"""Headers that must be documented wherever they are sent."""

Json = dict[str, Any]


class Documented:
    """An OpenAPI document, to compare responses with."""

    def __init__(self, document: Json) -> None:
        self.document = document

    def operations(self) -> Iterator[tuple[str, str, Json]]:
        """Each operation's method, path and description."""
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                yield method.upper(), path, operation

    def check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Assert that a response is documented: its status, media type, headers and body.

        path: without its query. Requests to other paths than the document's are ignored.
        """
        response = self._response(method, path, status)
        if response is None:
            return
        seen = {name.lower() for name in headers}
        documented = {name.lower(): each for name, each in response["headers"].items()}
        required = {name for name, each in documented.items() if each.get("required")}
        where = f"{method} {path} {status}"
        assert required <= seen, f"{where} lacks {required - seen}"
        unknown = {name for name in seen if OURS.fullmatch(name)} - documented.keys()
        assert not unknown, f"{where} has headers that are not documented: {unknown}"
        for name in seen & documented.keys():
            self._check_value(_value(headers[name], documented[name]["schema"]), documented[name]["schema"])
        if "content" not in response:
            assert (body, "content-type" in seen) == (b"", False), f"{where} has content"
            return
        kind = headers["content-type"].partition(";")[0]
        assert kind in response["content"], f"{where} is {kind}, documented are {[*response['content']]}"
        if kind == "application/json":
            self._check_value(json.loads(body), response["content"][kind]["schema"])

    def _response(self, method: str, path: str, status: int) -> Json | None:
        item = next((item for known, item in self.document["paths"].items() if _matches(known, path)), None)
        if item is None:
            return None
        if method.lower() not in item:
            assert status in (401, 405), f"{method} {path} is not documented, but was answered {status}"
        operation = item.get(method.lower(), next(iter(item.values())))
        assert str(status) in operation["responses"], f"{method} {path}: {status} is not documented"
        response: Json = operation["responses"][str(status)]
        return response

    def _check_value(self, value: object, schema: Json) -> None:
        whole = {"components": self.document["components"], "allOf": [schema]}
        jsonschema.Draft202012Validator(whole).validate(value)


def _matches(known: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(known)), path) is not None


def _value(text: str, schema: Json) -> object:
    return int(text) if schema["type"] == "integer" else text
