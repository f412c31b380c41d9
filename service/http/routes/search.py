"""GET /search: a prompt -> the nearest images of a gallery. POST /search: images -> captions."""

import base64
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult
from service.content import codecs
from service.errors import InvalidInput
from service.http.headers import UNDERSTOOD
from service.http.lifecycle import Call
from service.http.negotiation import negotiate
from service.http.requests import parse_int, read_query
from service.http.responses import Response, to_json
from service.http.routes.asking import AskingEndpoint
from service.http.routes.prompts import EXPECTED, Understood, style_name
from service.http.routes.schemas import CaptionQuery, SearchQuery
from service.http.routes.shared import (
    model_headers,
    server_timing,
)
from service.http.types import JSON, PNG, Headers, Receive, Scope
from service.models.manifest import STYLE_LEVELS, STYLES, Manifest
from service.models.tensors import Array
from service.serving.checks import check_inputs

QUERY = tuple(SearchQuery.model_fields)
CAPTION_QUERY = tuple(CaptionQuery.model_fields)
OFFERED = (JSON, PNG)
"""Media types of the responses to a prompt, the default one first."""
CAPTIONS_OFFERED = (JSON,)
COUNT, TOP_K = 10, 3
"""How many images, and how many captions of each image, if the query does not say."""

_LEVELS = tuple(itertools.product(range(STYLE_LEVELS), repeat=len(STYLES)))
_VOWELS = "aeiou8"


class Search(AskingEndpoint):
    """Both endpoints."""

    async def find(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a prompt with images."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._pinned("search", query)
        call.model = target.manifest.name
        accepted = negotiate(headers, OFFERED)
        found = next(spec.shape[1] for spec in target.manifest.outputs if spec.name == "index")
        count = parse_int("count", query["count"], 1, found) if "count" in query else min(COUNT, found)
        if "prompt" not in query:
            raise InvalidInput(f"prompt is missing, {EXPECTED}")
        understood, result = await self._asker(headers, receive, call).read(target, query["prompt"])
        with self._encode_seconds.of("png" if accepted == PNG else "json").timing():
            return _found(target.manifest, understood, result, count, accepted)

    async def describe(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer images with captions."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], CAPTION_QUERY)
        target = self._pinned("captioning", query)
        manifest = target.manifest
        call.model = manifest.name
        negotiate(headers, CAPTIONS_OFFERED)
        every = len(manifest.labels) * len(_LEVELS)
        top_k = parse_int("top_k", query["top_k"], 1, every) if "top_k" in query else min(TOP_K, every)
        asker = self._asker(headers, receive, call)
        spec = manifest.inputs[0]
        images = await self._images(scope, headers, asker, manifest, spec)
        inputs = {spec.name: images}
        rows = check_inputs(manifest, inputs, self._settings.max_request_rows)
        result = await asker.infer(target, inputs, rows)
        with self._encode_seconds.of("json").timing():
            described = captions(manifest, result.outputs, top_k)
            encoded = to_json({"model": manifest.name, "version": result.version, "images": described})
        return Response(encoded, timing=server_timing(result), model=manifest.name)


def _found(
    manifest: Manifest, understood: Understood, result: InferenceResult, count: int, accepted: str
) -> Response:
    outputs = {spec.name: array[0] for spec, array in zip(manifest.outputs, result.outputs, strict=True)}
    pictures: NDArray[np.uint8] = outputs["picture"][:count]
    header = (UNDERSTOOD.wire, understood.header())
    timing, name = server_timing(result), manifest.name
    if accepted == PNG:
        body = codecs.png_from_image(codecs.sprite(pictures) if count > 1 else pictures[0])
        headers = (*model_headers(name, result.version), header)
        return Response(body, PNG, headers=headers, timing=timing, model=name)
    images = [
        {
            "index": int(outputs["index"][row]),
            "score": float(outputs["score"][row]),
            "label": manifest.labels[int(outputs["label"][row])],
            "png": base64.b64encode(codecs.png_from_image(pictures[row])).decode("ascii"),
        }
        for row in range(count)
    ]
    answer = {
        "model": name,
        "version": result.version,
        "understood": understood.fields(),
        "images": images,
    }
    return Response(to_json(answer), headers=(header,), timing=timing, model=name)


def captions(manifest: Manifest, outputs: Sequence[Array], top_k: int) -> list[dict[str, object]]:
    """Return each image's description, as `schemas.ImageCaptions` describes it.

    outputs: those of a captioning model. A caption's probability is the product of its parts'.
    """
    digit, *styles = outputs[: 1 + len(STYLES)]
    joint = digit
    for levels in styles:
        joint = (joint[:, :, None] * levels[:, None]).reshape(len(digit), -1)
    order = np.argsort(-joint, axis=1, kind="stable")[:, :top_k]
    return [
        {
            "label": manifest.labels[int(digit[row].argmax())],
            **{
                style: style_name(style, int(levels[row].argmax()))
                for style, levels in zip(STYLES, styles, strict=True)
            },
            "captions": [
                {"caption": _caption(manifest.labels, int(index)), "probability": float(joint[row, index])}
                for index in best
            ],
        }
        for row, best in enumerate(order)
    ]


def _caption(labels: Sequence[str], index: int) -> str:
    """Return the caption of a column of the joint probabilities: `a thin slanted 7`."""
    digit, levels = divmod(index, len(_LEVELS))
    words = [style_name(*each) for each in zip(STYLES, _LEVELS[levels], strict=True)]
    text = " ".join(word for word in (*words, labels[digit]) if word is not None)
    return f"{'an' if text[0] in _VOWELS else 'a'} {text}"
