"""A published version that is published again in its own place: what stays of it, and what is made anew."""

import re
import shutil
from pathlib import Path

from service.models.folder import CARD_FILE, read_info
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from service.models.signatures import SIGNATURE_FILE
from training.cards.card import command_lines, section, table
from training.cards.front_matter import front_matter
from training.datasets.splits import Splits
from training.errors import ConfidenceError
from training.evaluation.metrics import Metrics
from training.provenance.bom import BOM_FILE, Considerations, write_bom
from training.provenance.commit import commit
from training.sources import check_source, version_folder
from training.terminal import command_line
from training.versions import completed, read_verified, write_manifest

WRITTEN_ANEW = (MODEL_FILE, MANIFEST_FILE, CARD_FILE, BOM_FILE, SIGNATURE_FILE)


def version_to_replace(
    name: str, splits: Splits, models_dir: Path, version: int | None, *, force: bool, what: str
) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a version that is to be published again.

    version: None means the latest. what: the version will have, for the error without force.
    Raises SourceError, RepositoryError, or ConfidenceError for weights in other files or without force.
    """
    source = version_folder(models_dir / name, version)
    manifest = read_verified(source)
    check_source(manifest, splits)
    if manifest.files:
        raise ConfidenceError(f"{source} keeps weights in other files, expected all of them in {MODEL_FILE}")
    if not force:
        raise ConfidenceError(f"{source} exists: --force replaces it with the same weights and {what}")
    return source, manifest


def copy_the_rest(source: Path, staged: Path) -> None:
    """Copy the files of a version that are not written anew."""
    for path in source.iterdir():
        if path.name not in WRITTEN_ANEW:
            shutil.copy2(path, staged)


def with_step(command: str, step: str) -> str:
    """Return a manifest's command with this one at its end, in the place of one that begins with `step`."""
    steps = [each for each in command.split(" && ") if not each.startswith(step)]
    return " && ".join([*steps, command_line()])


def measured_again(draft: Manifest, staged: Path, measured: Metrics) -> Manifest:
    """Return the manifest with the checksum and every metric, those of the data set last."""
    data = {key: value for key, value in draft.metrics.items() if key.startswith("data")}
    kept = {key: value for key, value in draft.metrics.items() if key not in data}
    return completed(draft.model_copy(update={"metrics": data}), staged, kept | measured)


def write_again(source: Path, staged: Path, finished: Manifest, page: str, models_dir: Path) -> None:
    """Write the manifest, the card and the bill of materials. page: the card without its front matter."""
    write_manifest(staged, finished)
    (staged / CARD_FILE).write_text(front_matter(finished) + page)
    write_bom(staged, finished, _considerations(source, finished, models_dir), commit())


def refreshed(card: str, made: Manifest) -> str:
    """Return a card without its front matter, with the manifest's metrics and commands."""
    page = re.sub(r"\A---\n.*?\n---\n\n", "", card, flags=re.DOTALL)
    metrics = f"| metric | value |\n|---|---|\n{table(made.metrics.items())}\n"
    page = re.sub(r"^\| metric \| value \|\n(?:\|.*\n)+", lambda _: metrics, page, flags=re.MULTILINE)
    commands = f"```\n{command_lines(made.command)}\n```"
    return re.sub(r"```\npython -m training .*?```", lambda _: commands, page, count=1, flags=re.DOTALL)


def _considerations(source: Path, manifest: Manifest, models_dir: Path) -> Considerations:
    """What the model's card says, or, if it has no such section, that of the model that it is made from."""
    cards = [read_info(source).card]
    if "source" in manifest.metrics:
        cards.append(read_info(models_dir / str(manifest.metrics["source"])).card)
    headings = ("Architecture", "Intended use", "Limits")
    words = (next(filter(None, (section(card, each) for card in cards)), "") for each in headings)
    return Considerations(*words)
