"""Photos of a sheet: the digit is found in every situation, and what is not one whole digit is rejected."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw

from loadtests.photos.__main__ import open_session
from loadtests.photos.scenes import SITUATIONS, photo
from service.content.digits import digit_from_picture
from service.content.lines import lines_in
from service.content.sheet import filled
from service.content.strokes import labels_of, runs_of
from service.errors import InvalidInput
from service.models.manifest import read_manifest

ROOT = Path(__file__).parents[3]
DIGITS = [np.asarray(Image.open(ROOT / "tests" / "digits" / f"{digit}.png")) for digit in range(10)]
PAPER, INK = 215, 45
DEFAULT = "cnn-pruned"


@pytest.fixture(scope="module")
def classify() -> Callable[[np.ndarray], np.ndarray]:
    """The default classifier: (28, 28) -> ten probabilities."""
    session = open_session(ROOT / "models" / DEFAULT / "1" / "model.onnx")
    return lambda digit: session.run(None, {"images": digit[None]})[0][0]


def seven(width: int = 480, height: int = 640) -> Image.Image:
    """A seven of two straight strokes on an even sheet."""
    sheet = Image.new("L", (width, height), PAPER)
    scaled = [(0.31 * width, 0.31 * height), (0.69 * width, 0.3 * height), (0.46 * width, 0.7 * height)]
    ImageDraw.Draw(sheet).line(scaled, fill=INK, width=width // 20, joint="curve")
    return sheet


def with_strip(depth: int, level: int, *sides: str) -> Image.Image:
    pixels = np.array(seven())
    views = {"top": pixels, "bottom": pixels[::-1], "left": pixels.T, "right": pixels.T[::-1]}
    for side in sides:
        views[side][:depth] = level
    return Image.fromarray(pixels)


def with_lines(spacing: int, level: int, *, down: bool) -> Image.Image:
    pixels = np.array(seven())
    pixels[10::spacing] = np.minimum(pixels[10::spacing], level)
    if down:
        pixels[:, 10::spacing] = np.minimum(pixels[:, 10::spacing], level)
    return Image.fromarray(pixels)


def in_shadow(column: int, fraction: float) -> Image.Image:
    pixels = np.array(seven(), np.float32)
    pixels[:, :column] *= fraction
    return Image.fromarray(pixels.astype(np.uint8))


CASES = {
    "a dark strip at one side": with_strip(8, 40, "left"),
    "a strip of one pixel": with_strip(1, 0, "right"),
    "bars above and below": with_strip(12, 0, "top", "bottom"),
    "wide bars at both sides": with_strip(90, 0, "left", "right"),
    "a dark frame": with_strip(40, 30, "top", "bottom", "left", "right"),
    "ruled lines": with_lines(50, 150, down=False),
    "ruled lines as dark as the ink": with_lines(80, INK, down=False),
    "squared paper": with_lines(40, 165, down=True),
    "squared paper as dark as the ink": with_lines(64, INK, down=True),
    "a shadow's edge across the digit": in_shadow(190, 0.8),
    "a dark shadow's edge through a stroke": in_shadow(260, 0.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("invert", [False, True], ids=["dark ink", "light ink"])
def test_seven_is_found(case: str, invert: bool, classify: Callable[[np.ndarray], np.ndarray]) -> None:
    picture = CASES[case]
    shown = Image.fromarray(255 - np.asarray(picture)) if invert else picture
    assert classify(digit_from_picture(shown)).argmax() == 7


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS)
def test_photos_are_read_and_never_surely_wrong(
    situation: str, classify: Callable[[np.ndarray], np.ndarray]
) -> None:
    outcomes: Counter[str] = Counter()
    for label, digit in enumerate(DIGITS):
        try:
            probabilities = classify(digit_from_picture(photo(digit, situation, label)))
        except InvalidInput:
            outcomes["rejected"] += 1
            continue
        right = int(probabilities.argmax()) == label
        sure = probabilities.max() >= 0.9
        outcomes["right" if right else "surely wrong" if sure else "wrong"] += 1
    assert outcomes["surely wrong"] == 0
    assert outcomes["wrong"] <= 1
    # Most photos with a second sign are rejected.
    assert outcomes["right"] >= (1 if situation == "company" else 9)


def drawn(*lines: list[tuple[int, int]]) -> Image.Image:
    sheet = Image.new("L", (300, 300), PAPER)
    for line in lines:
        ImageDraw.Draw(sheet).line(line, fill=INK, width=14)
    return sheet


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (drawn([(80, 60), (80, 220)], [(200, 60), (200, 220)]), r"more than one sign \(2 were seen\)"),
        (drawn([(80, 60), (80, 220)], [(110, 60), (110, 220)]), "more than one sign"),
        (drawn([(150, 0), (150, 220)]), "ink that touches its border"),
        (drawn([(60, 150), (240, 150)]), "times as wide as high"),
        (with_strip(30, 20, "left").crop((0, 0, 120, 180)), "image has no ink"),
        (with_lines(40, 150, down=False).crop((0, 0, 480, 180)), "only printed lines"),
    ],
)
def test_what_is_not_one_whole_digit_is_rejected(picture: Image.Image, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        digit_from_picture(picture)


@pytest.mark.slow
def test_digit_that_is_cut_off_is_never_answered_with_certainty_and_wrongly() -> None:
    """A stroke that a border cuts lengthways is wide, as paper is: a 2 without its foot is nearly a 7."""
    limit = read_manifest(ROOT / "models" / DEFAULT / "1").abstain_above
    assert limit is not None
    session = open_session(ROOT / "models" / DEFAULT / "1" / "model.onnx")
    outcomes: Counter[str] = Counter()
    for label, digit in enumerate(DIGITS):
        for picture in cut_off(digit):
            try:
                row = digit_from_picture(picture)
            except InvalidInput:
                outcomes["rejected"] += 1
                continue
            probabilities, scores = session.run(["probabilities", "ood_score"], {"images": row[None]})
            if scores[0] > limit:
                outcomes["abstained"] += 1
            elif int(probabilities[0].argmax()) == label:
                outcomes["right"] += 1
            else:
                outcomes["surely wrong" if probabilities[0].max() >= 0.99 else "wrong"] += 1
    assert outcomes["surely wrong"] == outcomes["wrong"] == 0
    assert outcomes["rejected"] >= 159


def cut_off(digit: np.ndarray) -> Iterator[Image.Image]:
    """Photos of a digit whose ink a border cuts: each side, at four depths."""
    sheet = Image.new("L", (300, 300), PAPER)
    large = Image.fromarray(digit).resize((168, 168), Image.Resampling.BICUBIC)
    sheet.paste(INK, (66, 66), large.point(lambda level: 255 if level > 100 else 0))
    down, across = np.nonzero(np.asarray(sheet) < 100)
    left, top, right, bottom = across.min(), down.min(), across.max() + 1, down.max() + 1
    for depth in (0.05, 0.15, 0.3, 0.5):
        x, y = depth * (right - left), depth * (bottom - top)
        yield sheet.crop((int(left + x), 0, 300, 300))
        yield sheet.crop((0, int(top + y), 300, 300))
        yield sheet.crop((0, 0, int(right - x), 300))
        yield sheet.crop((0, 0, 300, int(bottom - y)))


PATTERNS = st.sampled_from(["noise", "rows", "columns", "checks", "blocks"])
SIDES = st.one_of(st.integers(1, 12), st.integers(13, 90), st.integers(300, 900))
MODES = st.sampled_from(["L", "RGB", "RGBA", "LA", "1", "P", "CMYK", "I", "F"])


@pytest.mark.slow
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_picture_gives_a_digit_or_a_rejection(data: st.DataObject) -> None:
    height, width = data.draw(SIDES), data.draw(SIDES)
    pattern, levels = data.draw(PATTERNS), data.draw(arrays.arrays(np.uint8, (4,)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    y, x = np.indices((height, width))
    step = data.draw(st.integers(1, 40))
    index = {
        "noise": rng.integers(0, 4, (height, width)),
        "rows": y // step,
        "columns": x // step,
        "checks": x // step + y // step,
        "blocks": (x * 4 // width) * (y * 4 // height),
    }[pattern]
    picture = Image.fromarray(levels[index % 4]).convert(data.draw(MODES))
    try:
        digit = digit_from_picture(picture)
    except InvalidInput:
        return
    assert (digit.shape, digit.dtype) == ((28, 28), np.uint8)


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)))
@settings(deadline=None)
def test_runs_of_one_component_share_a_label(mask: np.ndarray) -> None:
    """Compared with a flood over pixels."""
    runs = runs_of(mask)
    labels = np.zeros(mask.shape, int)
    for label, row, start, stop in zip(labels_of(runs), runs.row, runs.start, runs.stop, strict=True):
        labels[row, start:stop] = label + 1
    flooded = np.zeros(mask.shape, int)
    for place in zip(*np.nonzero(mask), strict=True):
        if not flooded[place]:
            edge = [place]
            flooded[place] = flooded.max() + 1
            while edge:
                y, x = edge.pop()
                for near in np.ndindex(3, 3):
                    v, u = y + near[0] - 1, x + near[1] - 1
                    inside = 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]
                    if inside and mask[v, u] and not flooded[v, u]:
                        flooded[v, u] = flooded[place]
                        edge.append((v, u))
    pairs = set(zip(labels.ravel().tolist(), flooded.ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_filling_keeps_what_is_wide_and_what_goes_on_beyond_the_border() -> None:
    gray = np.full((60, 60), 200, np.uint8)
    gray[:, :3] = 10
    gray[20:40, 20:40] = 20
    gray[50:54, 30:50] = 30
    expected = gray.copy()
    expected[50:54, 30:50] = 200
    assert np.array_equal(filled(gray, 8), expected)


@pytest.mark.parametrize("slope", [-0.15, 0.0, 0.11])
def test_a_line_is_found_and_the_stroke_across_it_is_left(slope: float) -> None:
    y, x = np.indices((200, 300))
    line = np.abs(y - 100 - slope * (x - 150)) <= 1
    stroke = (np.abs(x - 140) < 6) & (y > 40) & (y < 170)
    found = lines_in(line | stroke)
    assert not found[stroke].any()
    assert found[line & ~stroke].mean() > 0.95
