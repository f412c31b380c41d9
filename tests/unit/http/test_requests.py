"""Bodies, queries and Accept headers, without a server."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InkserveError, InvalidInput, NotAcceptable, PayloadTooLarge
from service.http.disconnects import ClientDisconnected, DisconnectWatch
from service.http.negotiation import media_type, negotiate
from service.http.requests import parse_int, read_body, read_query
from service.http.types import Message, Receive


def receiving(*messages: Message) -> Receive:
    left = list(messages)

    async def receive() -> Message:
        if left:
            return left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def chunk(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    "messages", [[chunk(b"abcd")], [chunk(b"ab", True), chunk(b"cd")], [chunk(b"", True), chunk(b"abcd")]]
)
async def test_a_body_is_put_together_from_its_chunks(messages: list[Message]) -> None:
    assert await read_body({}, receiving(*messages), 4) == b"abcd"


async def test_a_declared_size_is_refused_before_anything_is_read() -> None:
    with pytest.raises(PayloadTooLarge, match="body has 5 bytes, expected at most 4"):
        await read_body({b"content-length": b"5"}, receiving(), 4)


@pytest.mark.parametrize("messages", [[chunk(b"abcde")], [chunk(b"abc", True), chunk(b"de", True)]])
async def test_an_undeclared_size_is_refused_once_it_is_passed(messages: list[Message]) -> None:
    with pytest.raises(PayloadTooLarge, match="body has over 4 bytes, expected at most 4"):
        await read_body({}, receiving(*messages), 4)


@pytest.mark.parametrize("messages", [[], [chunk(b"ab", True)]])
async def test_a_client_that_leaves_while_sending_is_noticed(messages: list[Message]) -> None:
    with pytest.raises(ClientDisconnected):
        await read_body({}, receiving(*messages, {"type": "http.disconnect"}), 4)


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(ClientDisconnected):
        await DisconnectWatch(0.001).guard(receiving({"type": "http.disconnect"}), work())
    assert cancelled.is_set()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_only_the_client_that_left_is_cancelled() -> None:
    watch = DisconnectWatch(0.001)
    staying = asyncio.ensure_future(watch.guard(receiving(), asyncio.sleep(0.05, "stayed")))
    with pytest.raises(ClientDisconnected):
        await watch.guard(receiving({"type": "http.disconnect"}), asyncio.Event().wait())
    assert await staying == "stayed"


async def test_work_that_ends_leaves_nothing_behind() -> None:
    watched = asyncio.Event()
    watch = DisconnectWatch(0.001)

    async def receive() -> Message:
        watched.set()
        await asyncio.Event().wait()
        raise AssertionError

    before = asyncio.all_tasks()
    assert await watch.guard(receive, watched.wait()) is True
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_work_that_ends_soon_is_not_watched() -> None:
    async def receive() -> Message:
        raise AssertionError("nobody should ask")

    assert await DisconnectWatch(0.001).guard(receive, asyncio.sleep(0, 7)) == 7
    await asyncio.sleep(0.01)


async def test_a_cancelled_task_is_no_disconnect() -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(DisconnectWatch().guard(receiving(), work()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_query_is_read() -> None:
    assert read_query(b"model=mlp&top_k=3", ("model", "top_k")) == {
        "model": "mlp",
        "top_k": "3",
    }


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"topk=3", "unknown query parameter 'topk', expected one of model, top_k"),
        (b"model=a&model=b", "query parameter model is given twice, expected once"),
        (b"model=\xff", "query string cannot be read"),
        (b"&".join([b"a=1"] * 40), "query string cannot be read"),
    ],
)
def test_a_wrong_query_is_refused(query: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_query(query, ("model", "top_k"))


@given(st.binary(max_size=60))
def test_any_query_is_read_or_refused(query: bytes) -> None:
    with contextlib.suppress(InkserveError):
        read_query(query, ("a",))


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.5", "", "x", "٣", "1e1", "9" * 50])
def test_a_number_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"top_k is '.*', expected a whole number in 1\.\.10"):
        parse_int("top_k", text, 1, 10)


OFFERED = ("image/png", "application/json", "application/octet-stream")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "image/png"),
        (b"*/*", "image/png"),
        (b"application/json", "application/json"),
        (b"Application/JSON; charset=utf-8", "application/json"),
        (b"image/*;q=0.5, application/json;q=0.4", "image/png"),
        (b"image/*;q=0.5, application/json;q=0.9", "application/json"),
        (b"text/html,application/xhtml+xml,image/avif,image/webp,image/png,*/*;q=0.8", "image/png"),
        (b"image/png;q=0, */*;q=0.1", "application/json"),
        (b"application/*", "application/json"),
    ],
)
def test_the_best_liked_media_type_is_chosen(accept: bytes | None, chosen: str) -> None:
    assert negotiate({} if accept is None else {b"accept": accept}, OFFERED) == chosen


@pytest.mark.parametrize("accept", [b"text/html", b"image/png;q=0", b"image/png;q=x", b""])
def test_an_answer_that_nobody_offers_is_not_acceptable(accept: bytes) -> None:
    with pytest.raises(NotAcceptable, match="expected one of image/png, application/json"):
        negotiate({b"accept": accept}, OFFERED)


def test_a_media_type_is_read_without_its_parameters() -> None:
    assert media_type({b"content-type": b"Application/JSON; charset=utf-8"}) == "application/json"
    assert media_type({}) == ""
