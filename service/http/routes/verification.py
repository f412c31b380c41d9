"""Verification of generated images: a classifier reads each one, and what it misreads can be redrawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult
from service.content.latents import MAX_SEED
from service.errors import InvalidInput, ModelNotFound
from service.http.headers import AGREEMENT, CLASSIFIER, READ
from service.http.routes.generated import LABELLED_ROWS, HeaderPair, joined
from service.http.routes.prompts import Asker
from service.http.routes.shared import Target, find_target
from service.models.manifest import Manifest
from service.models.tensors import Array
from service.serving.predictor import Predictor
from service.settings import Settings

REDRAWS = 4
"""An image that is misread is drawn at most this many times again."""

GAMMA = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, as in SplitMix64 (Steele, Lea and Flood 2014): no two of the first
multiples lie near each other, nor near the small seeds that people choose."""


def redraw_seed(seed: int, redraw: int) -> int:
    """Return the seed of the latents of the n-th redraw, n from 1: an image keeps its row."""
    return (seed + redraw * GAMMA) % (MAX_SEED + 1)


def agreeing(labels: Sequence[str], read: Sequence[str]) -> int:
    """Return how many images show their label."""
    return sum(label == seen for label, seen in zip(labels, read, strict=True))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a classifier read in generated images.

    labels: as the images were drawn. read: as the classifier read them. draws: how often each was drawn.
    """

    classifier: str
    version: int
    labels: Sequence[str]
    read: Sequence[str]
    draws: Sequence[int]

    @property
    def agreeing(self) -> int:
        """How many images show their label."""
        return agreeing(self.labels, self.read)

    def facts(self) -> Mapping[str, object]:
        """Return what `schemas.Verification` describes."""
        return {
            "classifier": self.classifier,
            "version": self.version,
            "agreeing": self.agreeing,
            "agreement": self.agreeing / len(self.read),
            "draws": sum(self.draws),
        }

    def each(self) -> Sequence[Mapping[str, object]]:
        """Return more members of each image in JSON."""
        return [{"read": read, "draws": draws} for read, draws in zip(self.read, self.draws, strict=True)]

    def headers(self) -> tuple[HeaderPair, ...]:
        """Return the headers that tell it."""
        told = (
            (CLASSIFIER.wire, self.classifier.encode("ascii")),
            (AGREEMENT.wire, b"%d/%d" % (self.agreeing, len(self.read))),
        )
        return (*told, (READ.wire, joined(self.read))) if len(self.read) <= LABELLED_ROWS else told


@dataclass(frozen=True, slots=True)
class Judge:
    """A classifier that reads generated images. target: it, at a version."""

    target: Target

    async def read(self, asker: Asker, images: Array) -> tuple[list[str], InferenceResult]:
        """Return the label that the classifier reads in each image."""
        manifest = self.target.manifest
        result = await asker.infer(self.target, {manifest.inputs[0].name: images}, len(images))
        return [manifest.labels[index] for index in result.outputs[0].argmax(axis=1)], result

    def verdict(self, labels: Sequence[str], read: Sequence[str], draws: NDArray[np.int64]) -> Verdict:
        """Return what it read."""
        manifest = self.target.manifest
        return Verdict(manifest.name, manifest.version, labels, read, draws.tolist())


def find_judge(predictor: Predictor, settings: Settings, name: str | None, generator: Manifest) -> Judge:
    """Return the classifier of that name, or the default one, for a generator's images.

    Raises InvalidInput if it cannot read them, ModelNotFound.
    """
    if generator.input("label") is None:
        raise InvalidInput(f"verify is given, but model {generator.name} accepts no label that it could miss")
    try:
        found = find_target(predictor, "classification", name, None, settings.default_classifier)
    except ModelNotFound:
        if name is None:
            raise InvalidInput("verify is given, but no classifier is served") from None
        raise
    manifest = found.manifest
    problem = mismatch(manifest, generator)
    if problem is not None:
        raise InvalidInput(f"verify is given, but {manifest.name} {problem} of {generator.name}")
    return Judge(Target(manifest, manifest.version))


def mismatch(classifier: Manifest, generator: Manifest) -> str | None:
    """Return why a classifier cannot judge a generator's images, or None if it can."""
    reads, drawn = classifier.inputs[0], generator.outputs[0]
    if (reads.datatype, reads.shape) != (drawn.datatype, drawn.shape):
        return f"reads {reads.datatype} {list(reads.shape)}, not the images {list(drawn.shape)}"
    unknown = [label for label in generator.labels if label not in classifier.labels]
    return f"does not know the label {unknown[0]}" if unknown else None
