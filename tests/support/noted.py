"""What reaches a predictor, for tests of what passes a request on."""

from typing import Any

import pytest

from service.batching.request import InferenceRequest
from service.serving.local import LocalPredictor


class Noted:
    """The requests that reach a predictor, which serves them all the same."""

    def __init__(self, predictor: LocalPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[InferenceRequest] = []
        submit = predictor.submit

        def note(request: InferenceRequest, *arguments: Any, **options: Any) -> Any:
            self.requests.append(request)
            return submit(request, *arguments, **options)

        monkeypatch.setattr(predictor, "submit", note)
