"""The command `ensemble`: several published classifiers as one, measured and published.

Works on their graphs alone, without the torch networks.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx

from service.models.folder import CARD_FILE, read_info
from service.models.manifest import MODEL_FILE, UNKNOWN_SHA256, Manifest
from training.cards.card import command_lines, fill_page, section, table
from training.cards.front_matter import front_matter
from training.confidence.graph import without_score
from training.datasets.splits import Splits
from training.ensembles.combine import mean_of
from training.errors import EnsembleError
from training.evaluation.classification import Readings, classification, readings
from training.evaluation.significance import mcnemar
from training.onnx_files import save_graph
from training.provenance.bom import Considerations, write_bom
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.sources import check_source, unscored
from training.terminal import command_line
from training.versions import Target, completed, read_verified, staging, write_manifest

SHARED = ("inputs", "outputs", "labels", "preprocess")
"""What the members' manifests must agree about."""


def ensemble(name: str, members: Sequence[Path], splits: Splits, target: Target) -> Path:
    """Publish the mean of the members' probabilities as models_dir/<name>/<version>; returns its folder.

    members: folders of published versions, at least two. Raises SourceError, EnsembleError, ExportError or
    EvaluationError, and then publishes nothing.
    """
    if len(members) < 2:
        raise EnsembleError(f"{len(members)} member given, expected 2 or more")
    manifests = [unscored(read_verified(folder)) for folder in members]
    for folder, manifest in zip(members, manifests, strict=True):
        check_source(manifest, splits)
        for field in SHARED:
            seen, expected = getattr(manifest, field), getattr(manifests[0], field)
            if seen != expected:
                raise EnsembleError(
                    f"{folder}: {field} are {seen}, expected those of {members[0]}: {expected}"
                )
    graphs = (onnx.load(folder / MODEL_FILE, load_external_data=False) for folder in members)
    combined = mean_of([without_score(graph) for graph in graphs])
    with staging([name], target) as (staged,):
        draft = _draft(name, int(staged.name), manifests, splits, target)
        describe_graph(combined, draft, commit())
        save_graph(combined, staged / MODEL_FILE)
        made = completed(draft, staged, classification(staged / MODEL_FILE, splits.test))
        write_manifest(staged, made)
        (staged / CARD_FILE).write_text(_page(made, members, manifests, staged, splits))
        write_bom(staged, made, _considerations(made, members[0]), commit())
    return target.models_dir / name / staged.name


def _draft(name: str, version: int, members: Sequence[Manifest], splits: Splits, target: Target) -> Manifest:
    """The manifest before the graph is written and measured: without its checksum and most metrics."""
    names = ", ".join(sorted({member.name for member in members}))
    return members[0].model_copy(
        update={
            "name": name,
            "version": version,
            "description": f"The mean of the probabilities of {len(members)} classifiers ({names}).",
            "default": target.keeps_default(name),
            "sha256": UNKNOWN_SHA256,
            "files": {},
            "metrics": {"data": splits.name, "data_digest": splits.digest},
            "command": " && ".join([*(member.command or "" for member in members), command_line()]),
        }
    )


def _considerations(made: Manifest, member: Path) -> Considerations:
    """What the members' cards say of all of them."""
    card = read_info(member).card
    return Considerations(made.description or "", section(card, "Intended use"), section(card, "Limits"))


def _page(
    made: Manifest, folders: Sequence[Path], members: Sequence[Manifest], staged: Path, splits: Splits
) -> str:
    """The model card."""
    ours = readings(staged / MODEL_FILE, splits.test)
    each = [readings(folder / MODEL_FILE, splits.test) for folder in folders]
    return front_matter(made) + fill_page(
        "ensemble",
        manifest=made,
        count=len(members),
        size=(staged / MODEL_FILE).stat().st_size,
        commands=command_lines(made.command or ""),
        metrics=table(made.metrics.items()),
        members=table(
            _row(number, member, theirs, ours)
            for number, (member, theirs) in enumerate(zip(members, each, strict=True), 1)
        ),
    )


def _row(number: int, member: Manifest, theirs: Readings, ours: Readings) -> tuple[object, ...]:
    result = mcnemar(ours.correct, theirs.correct)
    return (
        f"{number}: {member.name}",
        f"{theirs.correct.mean():.4f}",
        int((~theirs.correct).sum()),
        result.only_first,
        result.only_second,
        f"{result.p_value:.3g}",
    )
