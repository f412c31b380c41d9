"""The options in the head of a POST /classify, and the response made to suit them."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult, Priority
from service.content import codecs
from service.errors import PayloadTooLarge
from service.http.responses import Response, to_json
from service.http.routes.shared import (
    Target,
    answered_by,
    off_loop,
    raw_response,
    server_timing,
)
from service.http.types import OCTETS
from service.models.manifest import ImageLayout
from service.models.tensors import Array
from service.observability.histograms import Tally
from service.serving.predictor import Predictor

MAX_SHOWN = 16
"""At most this many images of a request are returned as the model sees them: people look at them."""

SHOWN_ON_LOOP_BYTES = 4 * 28 * 28
"""More pixels are encoded on a thread: an image of 28x28 takes up to 0.3 ms."""


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """The options in a request's head.

    timeout: seconds that the response may take. accepted: the response's media type.
    json_seconds: receives the time that a response in JSON takes.
    layout: of the images to show as the model sees them; None if they are not asked for.
    """

    target: Target
    timeout: float
    priority: Priority
    accepted: str
    top_k: int | None
    json_seconds: Tally
    layout: ImageLayout | None = None

    async def shown(self, rows: Array) -> list[str]:
        """Return the base64 of a PNG for each row, (rows, ...) uint8; empty if they are not asked for.

        Raises PayloadTooLarge for more than MAX_SHOWN.
        """
        if self.layout is None:
            return []
        if len(rows) > MAX_SHOWN:
            raise PayloadTooLarge(
                f"request has {len(rows)} images and show_input, expected at most {MAX_SHOWN}"
            )
        return await off_loop(rows.nbytes > SHOWN_ON_LOOP_BYTES, _base64_pngs, rows, self.layout)

    def respond(self, predictor: Predictor, result: InferenceResult, shown: Sequence[str] = ()) -> Response:
        """Return the response to the request, in the accepted media type. shown: what `shown` returned."""
        manifest = answered_by(predictor, self.target.manifest, result)
        probabilities = result.outputs[0]
        if self.accepted == OCTETS:
            return raw_response(self.target, result, probabilities)
        began = time.perf_counter()  # `Tally.timing` costs three times as much
        predictions = _predictions(probabilities, manifest.labels, self.top_k)
        place = manifest.ood_output()
        if place is not None:
            limit = manifest.abstain_above
            for prediction, score in zip(predictions, result.outputs[place].tolist(), strict=True):
                prediction["ood_score"] = score
                prediction["abstain"] = score > limit
        if shown:
            for prediction, picture in zip(predictions, shown, strict=True):
                prediction["input"] = picture
        body = {"model": manifest.name, "version": result.version, "predictions": predictions}
        encoded = to_json(body)
        self.json_seconds.add(time.perf_counter() - began)
        return Response(encoded, timing=server_timing(result), model=manifest.name)


def _base64_pngs(rows: Array, layout: ImageLayout) -> list[str]:
    return [base64.b64encode(codecs.png_from_row(row, layout)).decode("ascii") for row in rows]


def _predictions(
    probabilities: NDArray[np.float32], labels: Sequence[str], top_k: int | None
) -> list[dict[str, object]]:
    """Return each row's prediction, as `schemas.Prediction` describes it."""
    if top_k is None:
        best = probabilities.argmax(axis=1).tolist()
        return [
            {
                "label": labels[index],
                "probability": row[index],
                "probabilities": dict(zip(labels, row, strict=True)),
            }
            for index, row in zip(best, probabilities.tolist(), strict=True)
        ]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k].tolist()
    return [
        {
            "label": labels[top[0]],
            "probability": row[top[0]],
            "probabilities": {labels[index]: row[index] for index in top},
        }
        for top, row in zip(order, probabilities.tolist(), strict=True)
    ]
