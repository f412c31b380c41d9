"""What a peer sends: requests and results come back as they were, and anything else is a FrameError."""

import math
from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from service.batching.request import InferenceResult, RequestGroup
from service.errors import FrameError
from service.models.tensors import Array
from service.split import messages
from service.split.frames import Frame
from service.split.messages import Kind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
ROWS = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def sent(kind: Kind, header: object, body: bytes) -> Frame:
    """The frame as the other process reads it."""
    return Frame(kind, orjson.loads(orjson.dumps(header)), memoryview(body))


def group_of(rows: list[int], traced: bool) -> RequestGroup:
    z = np.arange(2 * sum(rows), dtype=np.float32).reshape(-1, 2)
    inputs: dict[str, Array] = {"z": z, "label": np.arange(sum(rows))}
    traceparents = [f"00-{index}" for index in range(len(rows))] if traced else None
    deadlines = [math.inf if index % 2 else 1.5 + index for index in range(len(rows))]
    return RequestGroup("ramp", 3, inputs, rows, deadlines, "low", traceparents)


def body_of(arrays: Any) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


@given(ROWS, st.booleans())
def test_a_group_comes_as_it_was_sent(rows: list[int], traced: bool) -> None:
    group, numbers = group_of(rows, traced), list(range(7, 7 + len(rows)))
    header = messages.group_header(numbers, group)
    ids, seen = messages.read_group(sent(Kind.INFER, header, body_of(group.inputs.values())))
    assert ids == numbers
    assert seen._replace(inputs={}) == group._replace(inputs={})
    assert all(np.array_equal(seen.inputs[name], array) for name, array in group.inputs.items())
    assert [request.rows for request in seen.requests()] == rows


@given(ROWS)
def test_each_result_has_its_own_rows(rows: list[int]) -> None:
    outputs: tuple[Array, ...] = (np.arange(3.0 * sum(rows)).reshape(-1, 3), np.arange(sum(rows)))
    result = InferenceResult(2, outputs, 0.5, 0.25, 64)
    header = messages.results_header(list(range(len(rows))), rows, result)
    results = list(messages.read_results(sent(Kind.RESULTS, header, body_of(outputs))))
    assert [number for number, _ in results] == list(range(len(rows)))
    assert [len(each.outputs[0]) for _, each in results] == rows
    for place, whole in enumerate(outputs):
        assert np.array_equal(np.concatenate([each.outputs[place] for _, each in results]), whole)


@given(ROWS, st.booleans(), st.integers(0, 7), JSON)
def test_a_changed_header_of_requests_is_read_whole_or_not_at_all(
    rows: list[int], traced: bool, place: int, other: Any
) -> None:
    group = group_of(rows, traced)
    header = messages.group_header(list(range(len(rows))), group)
    header[min(place, len(header) - 1)] = other
    try:
        ids, seen = messages.read_group(sent(Kind.INFER, header, body_of(group.inputs.values())))
    except FrameError:
        return
    assert len(set(ids)) <= len(ids) == len(seen.rows) == len(seen.deadlines)
    assert all(isinstance(each, int) for each in (*ids, *seen.rows))
    assert all(each is None or isinstance(each, str) for each in seen.traceparents or ())
    assert all(len(array) == sum(seen.rows) for array in seen.inputs.values())


@given(ROWS, st.integers(0, 6), JSON)
def test_a_changed_header_of_results_is_read_whole_or_not_at_all(
    rows: list[int], place: int, other: Any
) -> None:
    outputs = (np.zeros((sum(rows), 3), np.float32),)
    header = messages.results_header(list(range(len(rows))), rows, InferenceResult(2, outputs, 0.5, 0.25, 64))
    header[place] = other
    try:
        results = list(messages.read_results(sent(Kind.RESULTS, header, body_of(outputs))))
    except FrameError:
        return
    assert all(isinstance(number, int) for number, _ in results)
    assert sum(len(each.outputs[0]) for _, each in results if each.outputs) in (sum(rows), 0)


@given(JSON)
def test_the_place_of_a_body_consists_of_whole_numbers_from_0(header: Any) -> None:
    frame = sent(Kind.INFER_SHARED, header, b"")
    for read in (messages.read_number, lambda frame: messages.read_shared(frame)[:2]):
        try:
            found = read(frame)
        except FrameError:
            continue
        numbers = found if isinstance(found, tuple) else (found,)
        assert all(type(number) is int and number >= 0 for number in numbers)
        assert list(numbers) == header[: len(numbers)]
