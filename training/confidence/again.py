"""A published version that is published again in its own place: what stays of it, and what is made anew."""

import re
import shutil
from pathlib import Path

from service.models.folder import CARD_FILE, read_info
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from service.models.signatures import SIGNATURE_FILE
from training.cards.card import command_lines, section, table
from training.errors import ConfidenceError
from training.provenance.bom import BOM_FILE, Considerations
from training.terminal import command_line

WRITTEN_ANEW = (MODEL_FILE, MANIFEST_FILE, CARD_FILE, BOM_FILE, SIGNATURE_FILE)


def check_whole(source: Path, manifest: Manifest, *, force: bool, what: str) -> None:
    """Raise ConfidenceError for weights in other files, or without force. what: the version will have."""
    if manifest.files:
        raise ConfidenceError(f"{source} keeps weights in other files, expected all of them in {MODEL_FILE}")
    if not force:
        raise ConfidenceError(f"{source} exists: --force replaces it with the same weights and {what}")


def copy_the_rest(source: Path, staged: Path) -> None:
    """Copy the files of a version that are not written anew."""
    for path in source.iterdir():
        if path.name not in WRITTEN_ANEW:
            shutil.copy2(path, staged)


def with_step(command: str, step: str) -> str:
    """Return a manifest's command with this one at its end, in the place of one that begins with `step`."""
    steps = [each for each in command.split(" && ") if not each.startswith(step)]
    return " && ".join([*steps, command_line()])


def refreshed(card: str, made: Manifest) -> str:
    """Return a card without its front matter, with the manifest's metrics and commands."""
    page = re.sub(r"\A---\n.*?\n---\n\n", "", card, flags=re.DOTALL)
    metrics = f"| metric | value |\n|---|---|\n{table(made.metrics.items())}\n"
    page = re.sub(r"^\| metric \| value \|\n(?:\|.*\n)+", lambda _: metrics, page, flags=re.MULTILINE)
    commands = f"```\n{command_lines(made.command)}\n```"
    return re.sub(r"```\npython -m training .*?```", lambda _: commands, page, count=1, flags=re.DOTALL)


def considerations_again(source: Path, manifest: Manifest, models_dir: Path) -> Considerations:
    """What the model's card says, or, if it has no such section, that of the model that it is made from."""
    cards = [read_info(source).card]
    if "source" in manifest.metrics:
        cards.append(read_info(models_dir / str(manifest.metrics["source"])).card)
    headings = ("Architecture", "Intended use", "Limits")
    words = (next(filter(None, (section(card, each) for card in cards)), "") for each in headings)
    return Considerations(*words)
