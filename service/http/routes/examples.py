"""The values that /docs fills in: requests that get 200 from this service and the models that it has."""

import math
from collections.abc import Mapping

from service.errors import ModelNotFound
from service.http.routes.generate import MIXED
from service.http.routes.schemas import GenerateRequest
from service.models.catalogue import Catalogue
from service.models.manifest import Manifest
from service.settings import Settings

SEVEN = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAwUlEQVR42mNgGDaAEUKFpD77sfTFHeyS9xQYGBg+X4UKPuk6w8DA"
    "wMDAAuGm6l/TMnSweCzLwPDntSTDozPIOhkYGBgYBA3PmDIw/Lh1XShnGi5nBP+9KIRLTuzl/2AokwlDMlv0/U1cGq1//rPD6fHW"
    "f7tZcclxnv1hhVNj3b9tOOW8f3+wxCUnfPffMlxyzKf/3VbGJan2758vLjn5B/+KGXF78Z8JLjnbT+iSSGFrw8Nw9wuKJAsy56Lz"
    "O+ITGABpETyQcCy90wAAAABJRU5ErkJggg=="
)
"""The first image of MNIST's test set, a seven, as base64 of a PNG."""

IMAGES = 16


def classify_body() -> Mapping[str, object]:
    """Return a JSON body of POST /classify."""
    return {"images": [SEVEN]}


def generate_fields(models: Catalogue, settings: Settings) -> Mapping[str, str | int]:
    """Return the fields of a request to the default generator, the same in a query and in a JSON body."""
    fields = GenerateRequest(
        count=min(IMAGES, settings.max_request_rows), label=_label(models, settings.default_generator), seed=1
    )
    return fields.model_dump(exclude_none=True)


def model(models: Catalogue) -> Manifest | None:
    """Return a model version that is served, or None."""
    return next((info.manifest for info in models), None)


def infer_body(manifest: Manifest) -> Mapping[str, object]:
    """Return a JSON body of POST /v2/models/{name}/infer for that model."""
    inputs = [
        {
            "name": spec.name,
            "shape": [1, *spec.shape[1:]],
            "datatype": spec.datatype,
            "data": [False if spec.datatype == "BOOL" else 0] * math.prod(spec.shape[1:]),
        }
        for spec in manifest.inputs
    ]
    return {"inputs": inputs}


def _label(models: Catalogue, generator: str | None) -> str:
    """Return a label that the generator accepts, if possible 7."""
    try:
        info = models.default("generation") if generator is None else models.find(generator)
    except ModelNotFound:
        return MIXED
    known = info.manifest.labels if info.manifest.input("label") is not None else ()
    return "7" if "7" in known else next(iter(known), MIXED)
