"""Prompts without a meaning to the model: what must be refused, to learn it and to measure it.

The training and validation prompts are made up; OUTSIDE, on which the published rate of false acceptance is
measured, was written by hand, and none of its own words is among those that training draws from.
"""

import re
from pathlib import Path
from random import Random
from typing import Literal

from training.captions.attributes import ANY, STYLES
from training.captions.grammar import (
    DEGREES,
    DIGITS,
    MAX_BYTES,
    MEDIA,
    PHRASES,
    PLURALS,
    VERBS,
    WORDS,
    Meaning,
    caption,
    prefix,
)
from training.datasets.splits import CLASSES

OUTSIDE = {
    "other things": (
        *("a red cat", "a thin man", "a slanted roof", "the weather in Paris", "a bold move", "fat chance"),
        *("small talk", "draw a house with a chimney", "show me a picture of a dog", "a heavy metal band"),
        *("my phone is ringing", "an upright piano", "straight outta compton", "italic typography"),
        *("light bulb", "a fine wine", "wide open spaces", "a big apple", "hello", "what can you do?"),
    ),
    "something unknown about a digit": (
        *("a red seven", "a blurry 3", "a happy little five", "a seven on fire", "two with a hat"),
        *("a dotted four", "a thin seven in blue ink", "an upside down six", "a rotated 9", "a noisy eight"),
        *("a mirrored three", "seven dwarfs", "three blind mice", "a pixelated zero", "a 5 with a long tail"),
        *("a thin golden 8", "chapter one", "a seven with a crossbar", "an open four", "a curly two"),
    ),
    "more than one digit": (
        *("three or four", "a seven and a two", "7 or 1", "47", "a thin 12", "2024", "seven eight nine"),
        *("a three or a thick five", "between 3 and 5", "one two three", "6/9", "either zero or six"),
        *("a seven not a one", "3, 4, 5", "a 2 next to a 3"),
    ),
    "numbers that are no digits": (
        *(
            "ten",
            "a slanted eleven",
            "seventeen",
            "minus one",
            "-4",
            "3.14",
            "a half",
            "forty two",
            "a dozen",
        ),
        *("the third digit", "first", "VII", "100", "a thin hundred"),
    ),
    "contradictions and negations": (
        *("a thin thick seven", "a small large two", "an upright slanted nine", "neither thin nor thick"),
        *("not a seven", "a seven that is not thin", "anything but a four", "a bold fine 3", "no digit"),
        *("any digit except 8", "a big little one", "a seven without thin strokes"),
    ),
    "misspelt": (
        *("a thni seven", "sevn", "a slnted five", "thikc 4", "a tree", "a for", "nein", "a to", "fiv"),
        *("a boldd 6", "a smal eight", "zer0", "an eigth", "uprigth 2"),
    ),
    "other languages": (
        *(
            "une sept mince",
            "eine dicke Sieben",
            "siete",
            "un ocho inclinado",
            "七",
            "тонкая семёрка",
            "trois",
        ),
        *("drei", "un cinque sottile", "sju"),
    ),
    "nothing": (
        *("a", "the", "please", "draw", "digit", "a number", "...", "?", "show me", "an image of a"),
        *("-", "aaaaaaaa", "asdf", "xyzzy", "!!!"),
    ),
}
"""Prompts that are outside the grammar, by kind; used once, for the published figures."""

_NUMBERS = (
    *("ten", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "eighteen", "nineteen", "twenty"),
    *("thirty", "fifty", "sixty", "seventy", "eighty", "ninety", "thousand", "million", "second", "fourth"),
    *("fifth", "sixth", "seventh", "eighth", "ninth", "double", "single", "pair", "couple", "nil", "nought"),
)

NEGATIONS = ("not", "no", "never", "neither", "except")

_ENDINGS = ("er", "est", "ish", "ly", "ness", "th", "teen", "ty", "ed", "ing", "y", "less", "d")

WORDS_FILE = Path(__file__).with_name("words.txt")
"""Words that no caption holds: English ones, and names of digits and sizes in other languages."""

KNOWN = frozenset(
    re.findall(
        r"[a-z]+",
        " ".join(
            [
                *DIGITS,
                *PLURALS,
                *DEGREES,
                *VERBS,
                *MEDIA[0],
                *MEDIA[1],
                "digit number figure digits numbers figures",
            ]
            + ["please handwritten that which is the to be and a an s"]
            + [
                word
                for table in (WORDS, PHRASES)
                for levels in table.values()
                for each in levels
                for word in each
            ]
        ),
    )
)
"""Every word that a caption may hold."""

_WRITTEN = frozenset(re.findall(r"\w+", " ".join(each for kind in OUTSIDE.values() for each in kind).lower()))

ALIEN = tuple(
    word
    for word in dict.fromkeys([*WORDS_FILE.read_text().split(), *_NUMBERS])
    if word not in KNOWN | _WRITTEN | {*NEGATIONS, "or", "then"}
)
"""The words that training and validation draw from: no caption holds one, nor does OUTSIDE."""

VALIDATION_EVERY = 5
"""One word of ALIEN in so many is for validation only."""

_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnprstvwz"


def foreign(random: Random, use: Literal["train", "validation"]) -> str:
    """A prompt that no caption says: of any kind that OUTSIDE has, but made up."""
    kinds = (_things, _with_alien, _digits, _contradiction, _misspelt, _nothing)
    while True:
        text = random.choices(kinds, (2, 5, 3, 2, 4, 1))[0](random, use)
        text = text.upper() if random.random() < 0.04 else text
        if len(text.encode()) <= MAX_BYTES:
            return text


def _alien(random: Random, use: str) -> str:
    """A word that no caption holds: of ALIEN, a known one with an ending, or made of syllables."""
    chance = random.random()
    if chance < 0.55:
        index = random.randrange(len(ALIEN) // VALIDATION_EVERY) * VALIDATION_EVERY
        offset = 0 if use == "validation" else random.randrange(1, VALIDATION_EVERY)
        return ALIEN[min(index + offset, len(ALIEN) - 1)]
    if chance < 0.7:
        return _unknown(random.choice(_keys()) + random.choice(_ENDINGS))
    parts = (random.choice(_CONSONANTS) + random.choice(_VOWELS) for _ in range(random.randint(1, 3)))
    return _unknown("".join(parts) + random.choice(("", *_CONSONANTS)))


def _unknown(word: str) -> str:
    return f"{word}x" if word in KNOWN or word in ALIEN else word


def _keys() -> list[str]:
    """The words that carry a meaning."""
    return [*DIGITS, *(word for levels in WORDS.values() for words in levels for word in words)]


def _captioned(random: Random, digit: int | None = None) -> tuple[Meaning, str]:
    levels = tuple(random.choice((0, ANY, ANY, 2)) for _ in STYLES)
    meaning = Meaning(random.randrange(CLASSES) if digit is None else digit, levels)  # type: ignore[arg-type]
    return meaning, caption(random, meaning, "train")


def _things(random: Random, use: str) -> str:
    """`a thin cat under water`: known words may be among them, but no digit."""
    words = [_alien(random, use) for _ in range(random.randint(1, 4))]
    if random.random() < 0.4:
        words.insert(0, random.choice(_keys()[CLASSES:]))
    return prefix(random) + " ".join(words)


def _with_alien(random: Random, use: str) -> str:
    """A caption with one more word, or with another word in the place of one of its own."""
    words = _captioned(random)[1].split(" ")
    place = random.randrange(len(words) + 1)
    if random.random() < 0.3 and place < len(words):
        words[place] = _alien(random, use)
    else:
        words.insert(place, _alien(random, use))
    if random.random() < 0.2:
        words.append(_alien(random, use))
    return " ".join(words)


def _digits(random: Random, _use: str) -> str:
    """Several digits, or a number that is none."""
    first, second = random.sample(range(CLASSES), 2)
    kind = random.randrange(5)
    if kind == 0:
        number = str(random.choice((random.randint(10, 99), random.randint(100, 99999))))
        return prefix(random) + random.choice(("", "thin ", "bold ", "digit ")) + number
    if kind == 1:
        number = random.choice((f"-{first}", f"{first}.{second}", f"{first}/{second}", f"{first}{second}"))
        return prefix(random) + number
    text = _captioned(random, first)[1]
    other = random.choice((DIGITS[second], str(second)))
    glue = random.choice((" or ", " and ", " ", ", ", " or a ", " and a ", " not a ", " to ", "/", " then "))
    if kind == 2:
        return text + glue + other
    if kind == 3:
        return other + glue + text
    name = random.choice((DIGITS[first], str(first)))
    return prefix(random) + name + glue + other


def _contradiction(random: Random, _use: str) -> str:
    """Both ends of a style, or a `not`."""
    if random.random() < 0.35:
        words = _captioned(random)[1].split(" ")
        words.insert(random.randrange(len(words)), random.choice(NEGATIONS))
        return " ".join(words)
    style = random.choice(STYLES)
    both = [random.choice(WORDS[style][0]), random.choice(WORDS[style][2])]
    random.shuffle(both)
    glue = random.choice((" ", " and ", ", ", " or "))
    digit = random.randrange(CLASSES)
    noun = random.choice((DIGITS[digit], str(digit), f"digit {digit}"))
    text = random.choice(
        (f"{glue.join(both)} {noun}", f"{both[0]} {noun}{glue}{both[1]}", f"{noun}, {glue.join(both)}")
    )
    return prefix(random) + text


def _misspelt(random: Random, use: str) -> str:
    """A caption in which one word that carries a meaning has a wrong, missing, doubled or swapped letter."""
    words = _captioned(random)[1].split(" ")
    places = [place for place, word in enumerate(words) if word.lower() in _keys()]
    if not places:
        return _with_alien(random, use)
    place = random.choice(places)
    words[place] = _unknown(misspelt(random, words[place].lower()))
    return " ".join(words if random.random() < 0.8 else words[place : place + 1])


def misspelt(random: Random, word: str) -> str:
    """The word with one letter wrong, missing, doubled or swapped with the next."""
    place = random.randrange(len(word) - 1)
    kind = random.randrange(4)
    letter = random.choice("abcdefghijklmnopqrstuvwxyz")
    if kind == 0:
        return word[:place] + letter + word[place + 1 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    if kind == 2:
        return word[:place] + word[place] + word[place:]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _nothing(random: Random, _use: str) -> str:
    """Neither a digit nor a style: articles, punctuation, letters without sense."""
    kind = random.randrange(3)
    if kind == 0:
        noun = random.choice(("", "digit", "number", "figure"))
        return (prefix(random) + noun).strip() or "a"
    letters = ".,;!?-_#*()" if kind == 1 else "abcdefghijklmnopqrstuvwxyzäß日"
    return "".join(random.choice(letters) for _ in range(random.randint(1, 12)))


assert all(len(each.encode()) <= MAX_BYTES for kind in OUTSIDE.values() for each in kind)
