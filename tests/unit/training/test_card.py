"""Model cards: the templates filled in, and the shipped cards as the templates give them."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from service.models.manifest import read_manifest
from training.cards.card import (
    KEPT,
    TEMPLATES,
    WIDTH,
    Card,
    command_lines,
    fill_page,
    make_card,
    section,
    table,
)
from training.families import classifier, flow, gan, vae

MODELS = Path(__file__).parents[3] / "models"
SECTIONS = {"architecture": "Architecture", "intended_use": "Intended use", "limits": "Limits"}

# As their published commands set them.
MLP = dataclasses.replace(
    classifier.MLP,
    precision="bf16-mixed",
    epochs=176,
    batch_size=1024,
    learning_rate=0.004,
    teacher="models/cnn-ensemble/1",
    temperature=2.0,
)
VIT = dataclasses.replace(classifier.VIT, precision="bf16-mixed")
FLOW = dataclasses.replace(
    flow.CONFIG,
    epochs=3,
    batch_size=64,
    learning_rate=2e-4,
    ema_decay=0.998,
    precision="bf16-mixed",
    guidance=0.1,
    source="runs/flow-3",
    reader="models/mlp/1",
)
DISTILLED = dataclasses.replace(
    flow.DISTILLED,
    epochs=2,
    learning_rate=3e-4,
    precision="bf16-mixed",
    ema_decay=0.998,
    source="runs/flow-distilled-3",
    teacher="runs/flow",
    adversary_weight=0.02,
    adversary_class_weight=0.5,
)
VAE = dataclasses.replace(vae.CONFIG, precision="bf16-mixed")
GAN = dataclasses.replace(
    gan.CONFIG,
    epochs=12,
    batch_size=128,
    discriminator_channels_28=32,
    learning_rate=5e-5,
    learning_rate_end=0.05,
    rate_ratio=6.0,
    warm_up=0.1,
    class_weight=0.2,
    class_ratio=5.0,
    r1_gamma=0.3,
    noise=0.1,
    contrast=1.1,
    precision="bf16-mixed",
    source="runs/gan-1",
    kept="last",
)

History = Sequence[Mapping[str, float]]


FAMILIES: dict[str, Callable[[History], Card]] = {
    "mlp": lambda history: classifier._card(MLP, classifier.build(MLP), history),
    "cnn": lambda history: classifier._card(classifier.CNN, classifier.build(classifier.CNN), history),
    "cnn-pruned": lambda history: classifier._card(
        classifier.CNN_PRUNED, classifier.untrained(classifier.CNN_PRUNED), history
    ),
    "vit": lambda history: classifier._card(VIT, classifier.build(VIT), history),
    "gan": lambda history: gan._card(GAN, gan.untrained(GAN), history),
    "flow": lambda history: flow._card(FLOW, flow.Velocity(FLOW), history),
    "flow-distilled": lambda history: flow._card(DISTILLED, flow.Velocity(DISTILLED), history),
    "vae": lambda history: vae._card("vae", "vae", VAE, vae.ConditionalVae(VAE), history),
    "vae-encoder": lambda history: vae._card("vae-encoder", "vae", VAE, vae.ConditionalVae(VAE), history),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_card_is_what_the_templates_give(name: str) -> None:
    folder = MODELS / name / "1"
    history = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    torch.manual_seed(0)
    card, page = FAMILIES[name](history), (folder / "README.md").read_text()
    for field, heading in SECTIONS.items():
        assert section(page, heading) == getattr(card, field)
    assert section(page, "Training").startswith(card.training)
    assert read_manifest(folder).description == card.description
    assert card.description in page


@pytest.mark.parametrize("page", sorted(MODELS.glob("*/*/README.md")), ids=str)
def test_shipped_card_is_wrapped(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if not line.startswith(KEPT)]
    assert max(len(line) for line in lines) <= WIDTH


def test_sections_of_several_templates_make_one_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.cards.card.TEMPLATES", tmp_path)
    (tmp_path / "one.md").write_text("# Description\n\nA {kind}\nmodel.\n\n# Architecture\n\nDeep.\n")
    (tmp_path / "two.md").write_text("# Training\n\nLong.\n\n# Intended use\n\nNone.\n\n# Limits\n\nMany.\n")
    assert make_card("one", "two", kind="small") == Card("A small model.", "Deep.", "Long.", "None.", "Many.")


def test_page_keeps_tables_and_code_and_wraps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.cards.card.TEMPLATES", tmp_path)
    wide = "| " + "x" * 200 + " |"
    (tmp_path / "page.md").write_text("# {name}\n\n{words}\n\n{rows}\n\n```\na\nb\n```\n\n{nothing}\n")
    page = fill_page("page", name="n", words="word " * 100, rows=table([["x" * 200]]), nothing="")
    heading, paragraph, rows, code = page.removesuffix("\n").split("\n\n")
    assert (heading, rows, code) == ("# n", wide, "```\na\nb\n```")
    assert max(len(line) for line in paragraph.splitlines()) <= WIDTH
    assert paragraph.split() == ["word"] * 100


@pytest.mark.parametrize("count", range(12))
def test_commands_are_wrapped_and_stay_the_same_to_a_shell(count: int) -> None:
    settings = [f"--set dropout_{number}={number / 10}" for number in range(count)]
    steps = [" ".join(["python -m training train cnn", *settings]), "python -m training export cnn"]
    text = command_lines(" && ".join(steps))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert [shlex.split(line) for line in text.replace("\\\n", "").splitlines()] == [*map(shlex.split, steps)]
    assert not any(line.endswith("--set \\") for line in text.splitlines())


def test_template_with_an_unknown_field_is_an_error() -> None:
    with pytest.raises(KeyError, match="config"):
        make_card("gan", parameters=1, epochs=1)


def test_every_template_is_used() -> None:
    code = "".join(path.read_text() for path in TEMPLATES.parent.rglob("*.py"))
    unused = [path.stem for path in TEMPLATES.glob("*.md") if f'"{path.stem}"' not in code]
    assert unused == []
