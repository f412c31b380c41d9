"""Published models that others are made from: quantised, combined, imitated, trained on. Needs no torch."""

from collections.abc import Collection
from pathlib import Path

from service.models.folder import read_info, version_folders
from service.models.manifest import MANIFEST_FILE, OOD_SCORE, UNKNOWN_SHA256, Manifest, Task
from training.cards.card import section
from training.datasets.splits import Splits
from training.errors import SourceError
from training.provenance.bom import Considerations
from training.terminal import command_line
from training.versions import Target

CLASSIFIERS: tuple[Task, ...] = ("classification",)
GENERATORS: tuple[Task, ...] = ("generation",)


def version_folder(parent: Path, version: int | None) -> Path:
    """The folder of a model's requested version, or of the latest. Raises SourceError."""
    versions = version_folders(parent, holding=MANIFEST_FILE)
    if not versions:
        raise SourceError(f"{parent} holds no version with a {MANIFEST_FILE}")
    if version is not None and version not in versions:
        raise SourceError(f"{parent} holds no version {version}, only {', '.join(map(str, versions))}")
    return versions[max(versions) if version is None else version]


def unscored(manifest: Manifest) -> Manifest:
    """The manifest of a model without its `ood_score`, which models that are made from it need anew."""
    outputs = tuple(spec for spec in manifest.outputs if spec.name != OOD_SCORE)
    return manifest.model_copy(update={"outputs": outputs, "abstain_above": None})


def variant_draft(source: Manifest, suffix: str, bits: str, splits: Splits, target: Target) -> Manifest:
    """The manifest of a model's variant before its graph is written and measured: without most metrics.

    suffix: of its name. bits: the sentence that its description ends with.
    """
    return source.model_copy(
        update={
            "name": source.name + suffix,
            "description": f"{source.description} {bits}",
            "default": target.keeps_default(source.name + suffix),
            "sha256": UNKNOWN_SHA256,
            "files": {},
            "metrics": {"data": splits.name, "data_digest": splits.digest},
            "command": f"{source.command} && {command_line()}",
        }
    )


def considerations_of(source: Path) -> Considerations:
    """What the card of a version's folder says that holds for a model with the same function too."""
    card = read_info(source).card
    return Considerations(*(section(card, heading) for heading in ("Architecture", "Intended use", "Limits")))


def check_source(manifest: Manifest, splits: Splits, tasks: Collection[Task] = CLASSIFIERS) -> None:
    """Raise SourceError unless the model is one for these tasks that was trained on this data."""
    model = f"{manifest.name}/{manifest.version}"
    if manifest.task not in tasks:
        raise SourceError(f"{model} is a model for {manifest.task}, expected {' or '.join(tasks)}")
    if manifest.metrics.get("data_digest") != splits.digest:
        raise SourceError(
            f"{model} was trained on {manifest.metrics.get('data', 'unknown')}, digest "
            f"{manifest.metrics.get('data_digest')}, but the data given is {splits.name}, "
            f"digest {splits.digest}"
        )
