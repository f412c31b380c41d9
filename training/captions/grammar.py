"""A small grammar of captions: what a caption means, and the many ways to say it.

Training, validation and test captions are built by different forms of the same words, so that the test
measures word orders that the encoder has never read. SYNONYMS are words that no form uses.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.content.prompts import text_rows
from training.captions.attributes import ANY, HIGH, LOW, STYLES
from training.datasets.splits import CLASSES

Use = Literal["train", "validation", "test"]

MAX_BYTES = 80
"""The longest prompt, in bytes of UTF-8; texts are padded to it with zeros."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")

WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "stroke": (("thin", "fine", "light", "slim"), (), ("thick", "bold", "heavy", "fat")),
    "slant": (("upright", "straight", "vertical"), (), ("slanted", "tilted", "italic", "leaning")),
    "size": (("small", "little", "narrow"), (), ("large", "big", "wide")),
}
"""The adjectives of each style's levels; the first of each level names it."""

PHRASES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "stroke": (
        ("with thin strokes", "in fine strokes", "in a thin pen"),
        (),
        ("with thick strokes", "in heavy strokes", "in a bold pen"),
    ),
    "slant": (
        ("without a slant", "standing upright"),
        (),
        ("with a slant", "leaning to the right", "slanted to the right"),
    ),
    "size": (("of small size", "in small"), (), ("of large size", "in large")),
}
"""What may follow the digit instead."""

SYNONYMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "stroke": (("skinny", "slender", "delicate"), (), ("chunky", "stout", "beefy")),
    "slant": (("erect", "unslanted", "plumb"), (), ("oblique", "sloping", "inclined")),
    "size": (("tiny", "petite", "compact"), (), ("huge", "giant", "broad")),
}
"""Words that mean the same and that no caption of the training holds: what they get is measured."""

VERBS = ("draw", "show me", "find", "write", "generate", "i want")
MEDIA = (("an image of", "a picture of"), ("images of", "pictures of"))
"""One, and several."""

DEGREES = ("very", "quite")


@dataclass(frozen=True)
class Meaning:
    """What a caption asks for. digit: None for any. levels: of STYLES; ANY for what it does not say."""

    digit: int | None
    levels: tuple[int, int, int]

    @property
    def says_nothing(self) -> bool:
        """Whether it asks for no digit and no style."""
        return self.digit is None and self.levels == (ANY, ANY, ANY)


def every_meaning() -> list[Meaning]:
    """Every meaning that names a digit: ten digits, 27 combinations of levels each."""
    combinations = list(itertools.product((LOW, ANY, HIGH), repeat=len(STYLES)))
    return [Meaning(digit, levels) for digit in range(CLASSES) for levels in combinations]  # type: ignore[arg-type]


def fits(
    meanings: Sequence[Meaning], labels: NDArray[np.int64], levels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which images show which meaning: (meanings, images)."""
    digits = np.array([-1 if each.digit is None else each.digit for each in meanings])[:, None]
    asked = np.array([each.levels for each in meanings])[:, None]
    right = (digits < 0) | (digits == labels)
    shown: NDArray[np.bool_] = right & ((asked == ANY) | (asked == levels)).all(2)
    return shown


def sample_meaning(random: Random, digit: int, levels: Sequence[int]) -> Meaning:
    """A meaning that an image of that digit and those levels shows: it may leave out some of what is so."""
    said = tuple(level if random.random() < 0.7 else ANY for level in levels)
    if said != (ANY, ANY, ANY) and random.random() < 0.08:
        return Meaning(None, said)  # type: ignore[arg-type]
    return Meaning(digit, said)  # type: ignore[arg-type]


def caption(random: Random, meaning: Meaning, use: Use) -> str:
    """A caption with that meaning, in a form that only captions of that use have."""
    while True:
        text = _typed(random, _article(random.choice(FORMS[use])(random, meaning)))
        if len(text.encode()) <= MAX_BYTES:
            return text


def plain_captions(meaning: Meaning) -> list[str]:
    """The plainest ways to say it, whose mean embedding stands for it."""
    words = [
        WORDS[style][level][0] for style, level in zip(STYLES, meaning.levels, strict=True) if level != ANY
    ]
    nouns = ["digit"] if meaning.digit is None else [DIGITS[meaning.digit], str(meaning.digit)]
    texts = [" ".join([*words, noun]) for noun in nouns]
    return [_article(prefix + text) for text in texts for prefix in ("", "a ", "draw a ")]


def to_bytes(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts as the encoder reads them: (n, MAX_BYTES) uint8, UTF-8, padded with zeros."""
    return text_rows(texts, MAX_BYTES)


def prefix(random: Random, *, plural: bool = False) -> str:
    """What may come before: `please draw a picture of a handwritten `, or any part of it, or nothing."""
    verb = random.random() < 0.4
    medium = random.random() < 0.12
    article = not plural and (random.random() < 0.75 if verb or medium else random.random() < 0.55)
    parts = [
        "please" if random.random() < (0.2 if verb else 0.03) else "",
        random.choice(VERBS) if verb else "",
        random.choice(MEDIA[plural]) if medium else "",
        random.choice(("a", "a", "a", "the")) if article else "",
        "handwritten" if random.random() < 0.08 else "",
    ]
    text = _spaced(*parts)
    return f"{text} " if text else ""


def _noun(random: Random, digit: int | None) -> str:
    """A single digit's name, with a chance of a word for digits before it."""
    kind = random.choice(("digit", "number", "figure"))
    if digit is None:
        return kind
    name = random.choice((DIGITS[digit], DIGITS[digit], str(digit)))
    return f"{kind} {name}" if random.random() < 0.25 else name


def _plural(random: Random, digit: int | None) -> str:
    if digit is None:
        return random.choice(("digits", "numbers", "figures"))
    return random.choice((PLURALS[digit], PLURALS[digit], f"{digit}s"))


def _adjectives(random: Random, meaning: Meaning) -> list[str]:
    """The adjectives of every style that the meaning says something about, in any order."""
    said = [(style, level) for style, level in zip(STYLES, meaning.levels, strict=True) if level != ANY]
    random.shuffle(said)
    words = [random.choice(WORDS[style][level]) for style, level in said]
    return [f"{random.choice(DEGREES)} {word}" if random.random() < 0.07 else word for word in words]


def _joined(random: Random, words: Sequence[str]) -> str:
    """`thin, small and slanted`, or without a comma or an `and`."""
    if len(words) < 2:
        return " ".join(words)
    comma = random.choice((" ", " ", ", "))
    last = random.choice((" ", " and ", ", "))
    return comma.join(words[:-1]) + last + words[-1]


def _usual(random: Random, meaning: Meaning) -> str:
    """`draw a thin seven leaning to the right`: each style before the digit or behind it."""
    behind = tuple(level if random.random() < 0.25 else ANY for level in meaning.levels)
    before = tuple(
        ANY if moved != ANY else level for level, moved in zip(meaning.levels, behind, strict=True)
    )
    words = _joined(random, _adjectives(random, Meaning(None, before)))  # type: ignore[arg-type]
    phrases = _phrases(random, Meaning(None, behind))  # type: ignore[arg-type]
    if random.random() < 0.15:
        text = prefix(random, plural=True) + _spaced(words, _plural(random, meaning.digit))
    else:
        text = prefix(random) + _spaced(words, _noun(random, meaning.digit))
    return _spaced(text, phrases)


def _phrases(random: Random, meaning: Meaning) -> str:
    said = [(style, level) for style, level in zip(STYLES, meaning.levels, strict=True) if level != ANY]
    random.shuffle(said)
    glue = random.choice((" ", " and ", ", "))
    return glue.join(random.choice(PHRASES[style][level]) for style, level in said)


def _behind(random: Random, meaning: Meaning) -> str:
    """`a seven, thin and slanted`, `a seven that is thin`."""
    words = _joined(random, _adjectives(random, meaning))
    if not words:
        return _usual(random, meaning)
    glue = random.choice((", ", " that is ", " which is ", ": ", ", that is ", ", which is "))
    return prefix(random) + _noun(random, meaning.digit) + glue + words


def _both(random: Random, meaning: Meaning) -> str:
    """`a seven with thin strokes and slanted`: a phrase, and then adjectives."""
    style = random.randrange(len(STYLES))
    first = tuple(level if index == style else ANY for index, level in enumerate(meaning.levels))
    rest = tuple(ANY if index == style else level for index, level in enumerate(meaning.levels))
    phrase = _phrases(random, Meaning(None, first))  # type: ignore[arg-type]
    words = _joined(random, _adjectives(random, Meaning(None, rest)))  # type: ignore[arg-type]
    if not phrase or not words:
        return _usual(random, meaning)
    glue = random.choice((" and ", ", ", " that is ", ", which is "))
    return prefix(random) + _noun(random, meaning.digit) + " " + phrase + glue + words


def _said(random: Random, meaning: Meaning) -> str:
    """`the seven is thin and slanted`: validation."""
    words = _joined(random, _adjectives(random, meaning))
    if not words:
        return f"a {_noun(random, meaning.digit)}, please"
    return f"the {_noun(random, meaning.digit)} is {words}"


def _first(random: Random, meaning: Meaning) -> str:
    """`thin and slanted, a seven`: validation."""
    words = _joined(random, _adjectives(random, meaning))
    noun = _noun(random, meaning.digit)
    return f"{words}, a {noun}" if words else f"the figure is a {noun}"


def _telegram(random: Random, meaning: Meaning) -> str:
    """`seven thin slanted`: test."""
    words = " ".join(_adjectives(random, meaning))
    return _spaced(_noun(random, meaning.digit), words) if words else f"{_noun(random, meaning.digit)} please"


def _named(random: Random, meaning: Meaning) -> str:
    """`the thin and slanted digit is a seven`: test."""
    words = _joined(random, _adjectives(random, meaning))
    name = "digit" if meaning.digit is None else random.choice((DIGITS[meaning.digit], str(meaning.digit)))
    return f"the {_spaced(words, 'handwritten digit')} is a {name}"


def _phrases_first(random: Random, meaning: Meaning) -> str:
    """`with thin strokes and leaning to the right: a seven`: test."""
    phrases = _phrases(random, meaning)
    noun = _noun(random, meaning.digit)
    return f"{phrases}: draw a {noun}" if phrases else f"find the picture of a {noun}"


FORMS: Mapping[Use, Sequence[Callable[[Random, Meaning], str]]] = {
    "train": (_usual, _usual, _usual, _usual, _behind, _behind, _both),
    "validation": (_said, _first),
    "test": (_telegram, _named, _phrases_first),
}
"""The forms of captions, by what the captions are for: no form is in two uses, no word only in one."""


def describe_words() -> str:
    """The words for the ends of the styles, for people."""
    ends = [(style, words[level]) for style, words in WORDS.items() for level in (LOW, HIGH)]
    return "; ".join(f"{words[0]} ({style}): {', '.join(words)}" for style, words in ends)


def with_synonym(random: Random, style: str, level: int, word: str) -> tuple[Meaning, str]:
    """A plain caption in which an unknown word says something: its meaning, and the text."""
    digit = random.randrange(CLASSES)
    levels = tuple(level if each == style else ANY for each in STYLES)
    noun = random.choice((DIGITS[digit], str(digit)))
    return Meaning(digit, levels), _article(f"a {word} {noun}")  # type: ignore[arg-type]


def _spaced(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _article(text: str) -> str:
    """`a eight` becomes `an eight`."""
    words = text.split(" ")
    for index, (word, following) in enumerate(itertools.pairwise(words)):
        if word == "a" and following[:1] and (following[0] in "aeiu8" or following == "oblique"):
            words[index] = "an"
    return " ".join(words)


def _typed(random: Random, text: str) -> str:
    """The same as people type it: capitals, a full stop."""
    chance = random.random()
    if chance < 0.06:
        text = text.upper()
    elif chance < 0.25:
        text = text[:1].upper() + text[1:]
    return text + random.choice((".", "!")) if random.random() < 0.15 else text
