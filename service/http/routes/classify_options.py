"""The options in the head of a POST /classify, and the response made to suit them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult, Priority
from service.http.responses import Response, to_json
from service.http.routes.shared import (
    Target,
    answered_by,
    raw_response,
    server_timing,
)
from service.http.types import OCTETS
from service.serving.predictor import Predictor


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """The options in a request's head.

    timeout: seconds that the response may take. accepted: the response's media type.
    """

    target: Target
    timeout: float
    priority: Priority
    accepted: str
    top_k: int | None

    def respond(self, predictor: Predictor, result: InferenceResult) -> Response:
        """Return the response to the request, in the accepted media type."""
        manifest = answered_by(predictor, self.target.manifest, result)
        probabilities = result.outputs[0]
        if self.accepted == OCTETS:
            return raw_response(self.target, result, probabilities)
        predictions = _predictions(probabilities, manifest.labels, self.top_k)
        body = {"model": manifest.name, "version": result.version, "predictions": predictions}
        return Response(to_json(body), timing=server_timing(result), model=manifest.name)


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
