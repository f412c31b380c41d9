"""Prompts: what a text asks for, as a search model reads it, for /search and for /generate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceRequest, InferenceResult, Priority
from service.content.brief import shown
from service.content.prompts import CANDIDATES, nearest, text_rows
from service.errors import InvalidInput, ModelNotFound, PayloadTooLarge
from service.http.disconnects import DisconnectWatch
from service.http.lifecycle import Call
from service.http.routes.shared import Target, find_target
from service.http.types import Receive
from service.models.manifest import CAPTIONER_SUFFIX, STYLES, Manifest
from service.models.tensors import Array
from service.serving.predictor import Predictor, infer

UNDERSTOOD = 0.5
"""A prompt that is less probably understood is rejected; the graph puts its threshold here."""

EXAMPLE = "a thin slanted seven"
_CHOICES = ", ".join(" or ".join(ends) for ends in STYLES.values())
EXPECTED = f"expected one digit, as a word or a numeral, and its style ({_CHOICES}), such as {EXAMPLE!r}"


@dataclass(frozen=True, slots=True)
class Understood:
    """What a prompt asks for. label: None for any. styles: None for what it leaves open.

    certainty: the probability that the prompt asks for something. vector: its own, of length 1.
    """

    label: str | None
    styles: Mapping[str, str | None]
    certainty: float
    vector: NDArray[np.float32]

    @property
    def has_style(self) -> bool:
        """Whether it asks for a style."""
        return any(self.styles.values())

    def fields(self) -> dict[str, object]:
        """Return what `schemas.Understood` describes."""
        return {"label": self.label, **self.styles, "certainty": self.certainty}

    def header(self) -> bytes:
        """Return the value of the header that tells it."""
        said = [each for each in (*self.styles.values(), self.label) if each is not None]
        return ", ".join(said).encode("ascii", "replace")


@dataclass(frozen=True, slots=True)
class Asker:
    """One request's way to the models: it waits for their results unless its client leaves.

    is_shared: other requests wait for the same results, so its client may leave, and its span gets none.
    """

    predictor: Predictor
    watch: DisconnectWatch
    receive: Receive
    call: Call
    deadline: float
    priority: Priority
    is_shared: bool = False

    async def infer(self, target: Target, inputs: Mapping[str, Array], rows: int) -> InferenceResult:
        """Run rows of a model. Raises the errors of `Predictor.submit`."""
        request = InferenceRequest(
            target.manifest.name,
            target.version,
            inputs,
            rows,
            self.deadline,
            self.priority,
            self.call.submitted(),
        )
        if self.is_shared:
            return await infer(self.predictor, request)
        result = await self.watch.guard(self.receive, infer(self.predictor, request))
        self.call.note_inference(result)
        return result

    async def read(self, target: Target, prompt: str) -> tuple[Understood, InferenceResult]:
        """Return what a search model makes of a prompt, and all that it found.

        Raises InvalidInput for a prompt that it cannot read, or that it does not understand.
        """
        spec = target.manifest.inputs[0]
        text = _checked(prompt, spec.shape[1])
        result = await self.infer(target, {spec.name: text_rows([text], spec.shape[1])}, 1)
        understood = _understood(target.manifest, result)
        if understood.certainty < UNDERSTOOD or not (understood.label or understood.has_style):
            raise InvalidInput(
                f"prompt is {shown(prompt)}, which {target.manifest.name} does not understand "
                f"({understood.certainty:.2f} of at least {UNDERSTOOD}): {EXPECTED}"
            )
        return understood, result

    async def choose(self, search: Target, understood: Understood, images: Array) -> NDArray[np.int64]:
        """Return the row of the image that suits a prompt best, for each CANDIDATES rows of images."""
        target = captioner_of(self.predictor, search.manifest)
        spec = target.manifest.inputs[0]
        if images.shape[1:] != spec.shape[1:]:
            raise InvalidInput(
                f"the generator's images are {list(images.shape[1:])}, {target.manifest.name} reads "
                f"{list(spec.shape[1:])}: name a generator that suits it in `model`"
            )
        result = await self.infer(target, {spec.name: images}, len(images))
        names = [each.name for each in target.manifest.outputs]
        return nearest(understood.vector, result.outputs[names.index("vector")], CANDIDATES)


def find_search(predictor: Predictor) -> Target:
    """Return the search model that reads /generate's prompts, at the version that is served now.

    Raises ModelNotFound.
    """
    manifest = find_target(predictor, "search", None, None, None).manifest
    return Target(manifest, manifest.version)


def captioner_of(predictor: Predictor, search: Manifest) -> Target:
    """Return the captioning model whose vectors lie in the same space as a search model's.

    It has the same version, and the search model's name with CAPTIONER_SUFFIX. Raises ModelNotFound.
    """
    name = f"{search.name}{CAPTIONER_SUFFIX}"
    return find_target(predictor, "captioning", name, search.version, None)


def captioners_of(predictor: Predictor, search: Manifest) -> Sequence[Manifest]:
    """Return the captioning model that `captioner_of` finds, or nothing: not every prompt needs it."""
    try:
        return [captioner_of(predictor, search).manifest]
    except ModelNotFound:
        return []


def candidates_for(understood: Understood, count: int, most: int) -> int:
    """Return how many images to draw for each one wanted: with a style CANDIDATES, of which one is kept.

    most: rows of a request. Raises PayloadTooLarge.
    """
    each = CANDIDATES if understood.has_style else 1
    if count * each > most:
        raise PayloadTooLarge(
            f"count is {count}, expected at most {most // each} with a prompt that names a style: "
            f"{each} images are drawn for each one"
        )
    return each


def _checked(prompt: str, length: int) -> str:
    """Return the prompt without space around it. Raises InvalidInput for one that the model cannot read."""
    text = prompt.strip()
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0 or "\ufffd" in text:
        raise InvalidInput(f"prompt is {shown(prompt)}, expected UTF-8")
    if not text:
        raise InvalidInput(f"prompt is empty, {EXPECTED}")
    if size > length:
        raise InvalidInput(f"prompt has {size} bytes, expected at most {length}")
    if "\0" in text:
        raise InvalidInput(f"prompt is {shown(prompt)}, expected no zero byte")
    return text


def _understood(manifest: Manifest, result: InferenceResult) -> Understood:
    outputs = {spec.name: array[0] for spec, array in zip(manifest.outputs, result.outputs, strict=True)}
    digit = int(outputs["digit"].argmax())
    return Understood(
        manifest.labels[digit] if digit < len(manifest.labels) else None,
        {style: style_name(style, int(outputs[style].argmax())) for style in STYLES},
        float(outputs["understood"]),
        outputs["vector"],
    )


def style_name(style: str, level: int) -> str | None:
    """Return the word for a level of a style, None for the middle one."""
    low, high = STYLES[style]
    return (low, None, high)[level]
