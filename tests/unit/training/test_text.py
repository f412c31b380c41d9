"""The text model: its loss, its graphs, and a tiny run that is exported, measured and served."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from service.content.prompts import CANDIDATES, nearest
from service.models.manifest import CAPTIONER_SUFFIX, MANIFEST_FILE, MODEL_FILE, Manifest
from tests.support.tiny_runs import Workshop, new_run
from training.captions.attributes import ANY, HIGH, LOW
from training.captions.grammar import Meaning, to_bytes
from training.datasets.splits import Dataset
from training.errors import DataError
from training.evaluation.evaluate import evaluate
from training.families import text
from training.families.pair import REACH, Pair
from training.families.text_graphs import Captions, Search, cut
from training.onnx_files import open_session
from training.versions import Target

TINY = dataclasses.replace(
    text.CONFIG,
    epochs=2,
    batch_size=20,
    captions=15,
    foreign=10,
    embedding=8,
    byte_channels=4,
    text_channels=6,
    channels_14=3,
    channels_7=4,
    hidden=8,
)


def pair() -> Pair:
    torch.manual_seed(0)
    return Pair(TINY).eval()


def gallery(count: int) -> Dataset:
    rng = np.random.default_rng(0)
    images = np.zeros((count, 28, 28), np.uint8)
    for number, image in enumerate(images):
        top, left = rng.integers(0, 9, 2)
        image[top : top + 19, left : left + 12] = rng.integers(1, 256, (19, 12))
        image[top, left] = number + 1
    return Dataset(images, np.arange(count) % 10)


def test_padding_and_capitals_change_nothing() -> None:
    rows = torch.from_numpy(to_bytes(["a thin 7", "A THIN 7"]))
    short = rows[:, : 8 + REACH]
    with torch.no_grad():
        padded, cut_off = pair().read(rows), pair().read(short)
    for whole, part in zip(padded, cut_off, strict=True):
        assert torch.allclose(whole[0], whole[1])
        assert torch.allclose(whole, part, atol=1e-6)


def test_an_empty_text_gives_finite_numbers() -> None:
    with torch.no_grad():
        assert all(torch.isfinite(part).all() for part in pair().read(torch.zeros(2, 80, dtype=torch.uint8)))


def test_the_loss_falls_if_pairs_that_fit_come_nearer() -> None:
    model = pair()
    labels, levels = np.array([7, 1]), np.array([[LOW, ANY, ANY], [HIGH, ANY, ANY]])
    meanings = [Meaning(7, (LOW, ANY, ANY)), Meaning(1, (ANY, ANY, ANY))]
    texts = text.Texts.of(meanings, ["thin 7", "1", "red cat"], labels, levels, torch.device("cpu"))
    assert texts.fit.tolist() == [[1, 0], [0, 1]]
    assert texts.understood.tolist() == [1, 1, 0]
    assert texts.digits.tolist() == [7, 1]
    images = torch.eye(2, 8)
    _, digit, styles, understood = (part.detach() for part in model.read(texts.rows))
    right, wrong = torch.eye(3, 8), torch.eye(3, 8)[[1, 0, 2]]
    losses = [
        float(text.loss_of(model, (images, vectors, digit, styles, understood), texts, TINY).detach())
        for vectors in (right, wrong)
    ]
    assert losses[0] < losses[1] - 1


def test_a_gallery_is_cut_and_put_together_without_loss() -> None:
    data = gallery(30)
    boxes, corners = cut(data.images)
    assert boxes.shape == (30, 19, 19)
    assert corners.shape == (30, 2)
    search = Search(pair(), data, 0.0).eval()
    with torch.no_grad():
        *_, score, index, label, picture = search(torch.from_numpy(to_bytes(["7", "a thin 4"])))
    assert index.shape == (2, 20)
    assert np.array_equal(picture.numpy(), data.images[index.numpy()])
    assert np.array_equal(label.numpy(), data.labels[index.numpy()])
    assert (score.diff(dim=1) <= 0).all()


def test_images_without_a_margin_are_kept_whole() -> None:
    data = Dataset(np.full((20, 28, 28), 9, np.uint8), np.arange(20) % 10)
    boxes, corners = cut(data.images)
    assert boxes.shape == (20, 28, 28)
    assert not corners.any()


def test_captions_are_probabilities() -> None:
    with torch.no_grad():
        digit, *styles, vector = Captions(pair()).eval()(torch.from_numpy(gallery(5).images))
    assert torch.allclose(digit.sum(1), torch.ones(5))
    for levels in styles:
        assert levels.shape == (5, 3)
        assert torch.allclose(levels.sum(1), torch.ones(5), atol=1e-5)
    assert torch.allclose(vector.norm(dim=1), torch.ones(5), atol=1e-5)


def test_the_nearest_of_each_group_is_chosen() -> None:
    vectors = np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], np.float32)
    assert nearest(np.array([1, 0], np.float32), vectors, 2).tolist() == [1, 2]
    assert CANDIDATES > 1


def test_other_classes_than_digits_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    splits = dataclasses.replace(workshop.splits, labels=("shirt", *workshop.splits.labels[1:]))
    with pytest.raises(DataError, match=r"the classes are shirt, 1, .* expected digits"):
        text.train(TINY, splits, new_run(tmp_path / "run", TINY))


@pytest.fixture(scope="module")
def published(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workshop's models with a tiny text model."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("gan", "judge"):
        target = folder / "models" / name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(workshop.models / name)
    run_dir = folder / "run"
    origin = {"model": "text", "data_digest": workshop.splits.digest}
    text.train(TINY, workshop.splits, new_run(run_dir, TINY, origin=origin))
    text.export("text", run_dir, workshop.splits, Target(folder / "models"))
    return folder / "models"


def test_a_run_is_published_as_a_pair(published: Path, workshop: Workshop) -> None:
    for name, task in (("text", "search"), (f"text{CAPTIONER_SUFFIX}", "captioning")):
        manifest = Manifest.model_validate_json((published / name / "1" / MANIFEST_FILE).read_bytes())
        assert (manifest.task, manifest.labels) == (task, workshop.splits.labels)
    card = (published / "text" / "1" / "README.md").read_text()
    words = " ".join(card.split())
    assert "thin (stroke): thin, fine, light, slim" in words
    assert "stroke (px)" in words
    assert (published / "text" / "1" / text.FOUND_FILE).is_file()


def test_the_threshold_refuses_two_validation_captions_in_a_hundred(published: Path) -> None:
    _, texts = text.validation_captions(text.VALIDATION_CAPTIONS)
    session = open_session(published / "text" / "1" / MODEL_FILE)
    (understood,) = session.run(["understood"], {"text": to_bytes(texts)})
    assert (understood < 0.5).mean() == pytest.approx(text.REFUSED, abs=0.002)


def test_a_published_pair_is_measured_again_alike(
    published: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["text", "text-image"], published, workshop.splits)
    seen = {line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("text/1 ")}
    metrics = json.loads((published / "text" / "1" / MANIFEST_FILE).read_text())["metrics"]
    assert seen == metrics.keys() - {"data", "data_digest"}
