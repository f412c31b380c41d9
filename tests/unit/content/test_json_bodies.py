import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content.json_bodies import JsonMeter, JsonNames, read_object, read_rows
from service.errors import InvalidInput, PayloadTooLarge, RequestError

NAMES = JsonNames(("model", "seed", "z"), "z", former=("digit",))
BARE = JsonNames(("images",), "images", bare=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"," * 5000, "over 4096 values, expected at most 4096"),
        (b"[" * 300, "over 256 lists and objects"),
        (b"{" * 300, "over 256 lists and objects"),
        (b":" * 10_001, "over 10000 keys"),
    ],
)
def test_a_body_is_counted_piece_by_piece_before_it_is_parsed(body: bytes, message: str) -> None:
    for size in (1, 7, len(body)):
        meter = JsonMeter(4096)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        with pytest.raises(PayloadTooLarge, match=message):
            list(map(meter.add, pieces))


def test_rows_of_lists_fit_the_default_bounds() -> None:
    JsonMeter(1_000_000).add(json.dumps([[[255] * 28] * 28] * 1275).encode())


@pytest.mark.parametrize("name", ["sed", "z" * 500, "\u0000\n", ""])
def test_an_unknown_field_is_named(name: str) -> None:
    with pytest.raises(InvalidInput, match="is unknown, expected one of model, seed, z") as caught:
        read_object(json.dumps({"seed": 1, name: 2}).encode(), NAMES)
    assert name[:30] in str(caught.value) or "\\" in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("depth", [100, 900, 1023, 1024, 5000])
@pytest.mark.parametrize("start", ["", '{"z":', '{"seed":', '{"images":', '{"other":'])
@pytest.mark.parametrize("brackets", ["[]", '{"a":', "[0,"])
def test_any_depth_gives_a_value_or_a_request_error(depth: int, start: str, brackets: str) -> None:
    closing = {"[]": "]", '{"a":': "}", "[0,": "]"}[brackets]
    opening = brackets[0] if brackets == "[]" else brackets
    body = (start + opening * depth + "0" + closing * depth + ("}" if start else "")).encode()
    for names in (NAMES, BARE):
        for read in (read_object, read_rows):
            try:
                value: Any = read(body, names)
            except RequestError:
                continue
            assert value is not None


@pytest.mark.parametrize("value", [True, [True], [1, True, 2], [[1, 2], [3, False]]])
def test_a_boolean_among_the_rows_is_no_number(value: Any) -> None:
    if value is True:
        assert read_rows(b'{"z": true}', NAMES) is True
        return
    with pytest.raises(InvalidInput, match=r"z holds (True|False), expected numbers"):
        read_rows(json.dumps({"z": value}).encode(), NAMES)


def test_strings_with_the_words_true_and_false_are_no_booleans() -> None:
    assert read_rows(b'["true", "false"]', BARE) == ["true", "false"]


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_body_is_read_or_rejected(body: bytes) -> None:
    for names in (NAMES, BARE):
        for read in (read_object, read_rows):
            try:
                read(body, names)
            except RequestError:
                continue
