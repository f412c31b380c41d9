"""Captions and the styles that they speak of: pure numpy, no network."""

import re
from random import Random

import numpy as np
import pytest

from service.models.manifest import STYLES as NAMED
from training.captions.attributes import ANY, FRACTION, HIGH, LOW, STYLES, Thresholds, measure
from training.captions.foreign import ALIEN, KNOWN, OUTSIDE, foreign, misspelt
from training.captions.grammar import (
    DIGITS,
    FORMS,
    MAX_BYTES,
    SYNONYMS,
    WORDS,
    Meaning,
    caption,
    every_meaning,
    fits,
    plain_captions,
    sample_meaning,
    to_bytes,
    with_synonym,
)
from training.datasets.splits import Dataset


def stroke(width: int, lean: float, height: int = 20) -> np.ndarray:
    """A straight stroke that leans by so many pixels from top to bottom, in the middle of an image."""
    image = np.zeros((28, 28), np.uint8)
    for row in range(height):
        left = round(14 - width / 2 + lean * (0.5 - row / (height - 1)))
        image[4 + row, left : left + width] = 255
    return image


def test_a_stroke_is_measured_in_pixels_and_degrees() -> None:
    images = np.stack([stroke(2, 0), stroke(4, 0), stroke(4, 10), stroke(4, -10), stroke(4, 0, height=10)])
    width, slant, size = measure(images).T
    # Twice the area over the outline: a stroke's two ends count as outline too, so it is a little less.
    assert width[:2] == pytest.approx([2 * 40 / 44, 2 * 80 / 48], rel=0.05)
    assert slant[:2] == pytest.approx([0, 0], abs=0.1)
    assert slant[2] == pytest.approx(np.degrees(np.arctan(10 / 19)), abs=1.5)
    assert slant[3] == pytest.approx(-slant[2])
    assert size[[0, 1, 4]] == pytest.approx([40, 80, 40])


def test_an_empty_image_measures_zero() -> None:
    assert measure(np.zeros((1, 28, 28), np.uint8)).tolist() == [[0, 0, 0]]


def test_levels_are_relative_to_the_images_of_a_digit() -> None:
    """The ones are all thinner than the twos, and still three in ten of each are thin."""
    images = np.stack([stroke(width, 0) for width in (*range(1, 11), *range(11, 21))])
    data = Dataset(images, np.repeat([1, 2], 10))
    levels = Thresholds.of(data).levels(data.images, data.labels)[:, STYLES.index("stroke")]
    per_digit = round(10 * FRACTION)
    for own in (levels[:10], levels[10:]):
        assert own.tolist() == [LOW] * per_digit + [ANY] * (10 - 2 * per_digit) + [HIGH] * per_digit


def test_the_words_name_what_the_service_names() -> None:
    assert {style: (low[0], high[0]) for style, (low, _, high) in WORDS.items()} == NAMED


def test_captions_fit_the_images_that_show_all_that_they_say() -> None:
    labels, levels = np.array([7, 7, 1]), np.array([[LOW, HIGH, ANY], [LOW, ANY, ANY], [LOW, HIGH, ANY]])
    meanings = [
        Meaning(7, (ANY, ANY, ANY)),
        Meaning(7, (LOW, HIGH, ANY)),
        Meaning(None, (LOW, ANY, ANY)),
        Meaning(7, (HIGH, ANY, ANY)),
    ]
    assert fits(meanings, labels, levels).astype(int).tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_a_sampled_meaning_is_true_of_its_image() -> None:
    random, levels = Random(0), [LOW, ANY, HIGH]
    for _ in range(200):
        meaning = sample_meaning(random, 3, levels)
        assert not meaning.says_nothing
        assert fits([meaning], np.array([3]), np.array([levels]))[0, 0]


@pytest.mark.parametrize("use", FORMS)
def test_a_caption_holds_one_digit_and_one_word_for_each_style(use: str) -> None:
    random = Random(1)
    for meaning in every_meaning():
        words = caption(random, meaning, use).lower()  # type: ignore[arg-type]
        assert len(words.encode()) <= MAX_BYTES
        digit = meaning.digit
        assert digit is not None
        assert DIGITS[digit] in words or str(digit) in words or f"{DIGITS[digit]}s" in words
        for style, level in zip(STYLES, meaning.levels, strict=True):
            ends = {end: sum(words.count(f"{word}") for word in WORDS[style][end]) for end in (LOW, HIGH)}
            assert level == ANY or ends[HIGH + LOW - level] == 0 or "slant" in words


def test_forms_of_words_belong_to_one_use() -> None:
    every = [form for forms in FORMS.values() for form in {*forms}]
    assert len(every) == len({*every})


def test_every_use_has_the_same_words_in_other_orders() -> None:
    random = Random(5)
    texts = {
        use: [caption(random, each, use) for each in every_meaning() for _ in range(20)] for use in FORMS
    }
    words = {use: {*re.findall(r"\w+", " ".join(each).lower())} for use, each in texts.items()}
    assert (
        words["validation"] | words["test"]
        <= words["train"]
        <= KNOWN | {*"0123456789"} | {f"{digit}s" for digit in range(10)}
    )


def test_texts_become_bytes_padded_with_zeros() -> None:
    rows = to_bytes(["7", "é"])
    assert rows.shape == (2, MAX_BYTES)
    assert rows[:, :3].tolist() == [[55, 0, 0], [195, 169, 0]]
    with pytest.raises(ValueError, match="text has 81 bytes, expected at most 80"):
        to_bytes(["x" * 81])


def test_plain_captions_have_their_article() -> None:
    assert plain_captions(Meaning(8, (ANY, LOW, ANY)))[1] == "an upright eight"
    assert "a thin slanted seven" in plain_captions(Meaning(7, (LOW, HIGH, ANY)))


def test_synonyms_and_other_words_are_in_no_caption() -> None:
    unseen = [word for levels in SYNONYMS.values() for words in levels for word in words]
    assert not {*unseen} & KNOWN
    assert not {*ALIEN} & KNOWN
    assert not {*ALIEN} & {
        word for kind in OUTSIDE.values() for text in kind for word in text.lower().split()
    }
    meaning, text = with_synonym(Random(0), "stroke", LOW, "skinny")
    assert meaning.levels == (LOW, ANY, ANY)
    assert "skinny" in text


@pytest.mark.parametrize("use", ["train", "validation"])
def test_foreign_prompts_fit_the_encoder_and_are_no_captions(use: str) -> None:
    random, own = (
        Random(2),
        {caption(Random(seed), each, "train") for seed in (0, 1) for each in every_meaning()},
    )
    prompts = [foreign(random, use) for _ in range(2000)]  # type: ignore[arg-type]
    assert not own & {*prompts}
    assert max(len(prompt.encode()) for prompt in prompts) <= MAX_BYTES
    assert min(len(prompt) for prompt in prompts) >= 1


def test_validation_draws_words_that_training_does_not() -> None:
    drawn = {
        use: {
            word
            for _ in range(3000)
            for word in foreign(random, use).lower().split()  # type: ignore[arg-type]
        }
        & {*ALIEN}
        for use, random in (("train", Random(3)), ("validation", Random(3)))
    }
    assert drawn["validation"]
    assert not drawn["train"] & drawn["validation"]


def test_a_misspelt_word_is_another_word() -> None:
    random = Random(4)
    wrong = {misspelt(random, "seven") for _ in range(100)}
    assert len(wrong) > 20
    assert {len(word) for word in wrong} == {4, 5, 6}
