"""An input of the fuzzer: a body and how it is declared. Knows nothing of atheris."""

from dataclasses import dataclass
from typing import get_args

from service.content.body_jobs import BodyLimits, Format, RowsJob
from service.content.encodings import Coding
from service.content.json_bodies import JsonNames
from service.content.picture_kinds import accepted_media_types
from service.content.pictures import PictureLimits
from service.models.manifest import Preprocess, TensorSpec

HEAD_BYTES = 2
FORMATS: tuple[Format, ...] = get_args(Format)
CODINGS: tuple[Coding, ...] = get_args(Coding)
KINDS = ("", "image/*", *accepted_media_types())
FORM_KINDS = ("multipart/form-data; boundary=X", 'multipart/form-data; boundary="X"', "multipart/form-data")

DIGITS = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
COLOURS = TensorSpec(name="images", datatype="UINT8", shape=(-1, 3, 16, 24))
MODELS: tuple[tuple[TensorSpec, Preprocess], ...] = (
    (DIGITS, "mnist-digit"),
    (COLOURS, "resize"),
    (COLOURS, "center-crop"),
)

LIMITS = BodyLimits(1_000_000, 64, 50_000, PictureLimits(500_000, 1_000_000, 20, 1_000_000))
NAMES = JsonNames(("images",), "images", bare=True)


@dataclass(frozen=True)
class Case:
    """A body, its format, its content coding, and the index of its declared type and of its model."""

    body: bytes
    format: Format
    coding: Coding = ""
    kind: int = 0
    model: int = 0

    def to_bytes(self) -> bytes:
        """Return the input: two bytes for the choices, then the body."""
        first = FORMATS.index(self.format) + len(FORMATS) * self.model
        return bytes([first, CODINGS.index(self.coding) + len(CODINGS) * self.kind]) + self.body

    def job(self) -> RowsJob:
        """Return the job that decodes the body."""
        spec, preprocess = MODELS[self.model]
        kinds = FORM_KINDS if self.format == "form" else KINDS
        kind = kinds[self.kind % len(kinds)]
        return RowsJob(self.format, kind, self.coding, spec, preprocess, LIMITS, NAMES)


def case_of(data: bytes) -> Case:
    """Return the case that an input of at least HEAD_BYTES means: any bytes mean one."""
    model, form = divmod(data[0], len(FORMATS))
    kind, coding = divmod(data[1], len(CODINGS))
    return Case(data[HEAD_BYTES:], FORMATS[form], CODINGS[coding], kind % len(KINDS), model % len(MODELS))
