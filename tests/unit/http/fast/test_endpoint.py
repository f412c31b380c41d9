"""The fast path: what it accepts, and that its responses are those of the ASGI path.

A real listener and real connections, in this process, over tiny models.
"""

import asyncio
import gc
import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.batching.items import Item
from service.batching.request import InferenceRequest
from service.batching.retries import Refusal
from service.content.npy import npy_from_array
from service.http.api_keys import ApiKeys
from service.http.fast.call import FastCall
from service.http.fast.endpoint import FastPath
from service.http.fast.head import Head, parse_head
from service.http.lifecycle import Lifecycle
from service.http.responses import Response
from service.http.routes.raw_plan import RawPlan
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel
from tests.support.collector import collecting
from tests.support.held import Held
from tests.support.http import exchange, image, png, request
from tests.support.listener import Listener, listening
from tests.support.live import connected
from tests.support.log_stream import logging_to_memory
from tests.support.noted import Noted

OCTETS = "application/octet-stream"
RAW = image(7).tobytes()
JSON = "application/json"
FORM = b"""--x\r\nContent-Disposition: form-data; name="images"; filename="7.png"\r\n\r\n%b\r\n--x--\r\n"""
INFER = "/v2/models/first-pixel/infer"


@pytest.fixture
async def listener(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(predictor, tmp_path) as listener:
        yield listener


KEEP_ALIVE_SECONDS = 0.4


@pytest.fixture
async def impatient(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Listener]:
    """A listener that soon closes idle connections. In other tests a slow moment would close one in use."""
    async with listening(predictor, tmp_path, keep_alive_seconds=KEEP_ALIVE_SECONDS) as listener:
        yield listener


def tensors(rows: int = 1, *, binary: bool = False, first: int = 0, **members: object) -> dict[str, Any]:
    """A request of the Open Inference Protocol. first: its first class. members: more of its JSON."""
    pixels = np.stack([image((first + place) % 10) for place in range(rows)])
    sent: dict[str, Any] = {"name": "images", "shape": pixels.shape, "datatype": "UINT8"}
    sent |= {"parameters": {"binary_data_size": pixels.nbytes}} if binary else {"data": pixels.tolist()}
    text = json.dumps({"inputs": [sent], **members}).encode()
    wish: dict[str, Any] = {"path": INFER, "kind": None}
    if not binary:
        return wish | {"body": text}
    return wish | {"body": text + pixels.tobytes(), "extra": f"Inference-Header-Content-Length: {len(text)}"}


NAMED = {"name": "probabilities", "parameters": {"binary_data": True, "classification": 2}}
ROWS_ONLY = tensors() | {"body": RAW * 2, "extra": "inference-header-content-length: 0"}
SAME: dict[str, tuple[dict[str, Any], int]] = {
    "one image": ({}, 200),
    "no content type": ({"kind": None}, 200),
    "curl's own content type": ({"kind": "application/x-www-form-urlencoded"}, 200),
    "raw probabilities": ({"accept": OCTETS}, 200),
    "many images": ({"body": b"".join(image(d).tobytes() for d in range(9)), "accept": OCTETS}, 200),
    "a model and top_k": ({"path": "/classify?model=another&version=3&top_k=2"}, 200),
    "images to show": ({"path": "/classify?show_input=true"}, 200),
    "a PNG without content type": ({"body": png(7), "kind": None}, 200),
    "a PNG": ({"body": png(7), "kind": "image/png"}, 200),
    "JSON": ({"body": json.dumps({"images": image(7).tolist()}).encode(), "kind": JSON}, 200),
    "base64": ({"body": json.dumps([b64encode(png(7)).decode()]).encode(), "kind": JSON}, 200),
    "a form": ({"body": FORM % png(7), "kind": "multipart/form-data; boundary=x"}, 200),
    "a .npy file": ({"body": npy_from_array(image(7)), "kind": "application/x-npy"}, 200),
    "wrong JSON": ({"body": b'{"images":[[1]]}', "kind": JSON}, 400),
    "a broken PNG": ({"body": png(7)[:-30], "kind": "image/png"}, 400),
    "a wrong form": ({"body": b"x", "kind": "multipart/form-data; boundary=x"}, 400),
    "a picture that is another": ({"body": png(7), "kind": "image/jpeg"}, 400),
    "images to show in JSON": (
        {"body": json.dumps(image(7).tolist()).encode(), "kind": JSON, "path": "/classify?show_input=true"},
        200,
    ),
    "a request id": ({"extra": "X-Request-Id: abc-1"}, 200),
    "a deadline": ({"extra": "inkserve-timeout: 5"}, 200),
    "half an image": ({"body": RAW[:392]}, 400),
    "no body": ({"body": b""}, 400),
    "too many images": ({"body": bytes(784 * 41)}, 413),
    "no such model": ({"path": "/classify?model=none"}, 404),
    "no such parameter": ({"path": "/classify?topk=2"}, 400),
    "no such form": ({"kind": "text/plain"}, 415),
    "no such answer": ({"accept": "text/html"}, 406),
    "a wrong deadline": ({"extra": "inkserve-timeout: soon"}, 400),
    "too long a deadline": ({"extra": "inkserve-timeout: 31"}, 400),
    "tensors in JSON": (tensors(3, id="mine"), 200),
    "tensors behind JSON": (tensors(9, binary=True, parameters={"binary_data_output": True}), 200),
    "tensors without JSON": (ROWS_ONLY, 200),
    "tensors of a version": (tensors() | {"path": "/v2/models/another/versions/3/infer"}, 200),
    "a class of tensors": (tensors(2, binary=True, outputs=[NAMED]), 200),
    "much JSON": (tensors(20), 200),
    "a deadline for tensors": (tensors(parameters={"timeout": 5_000_000, "priority": 2}), 200),
    "half a tensor": (tensors(binary=True) | {"body": RAW[:392]}, 400),
    "no tensors": (tensors() | {"body": b"{}"}, 400),
    "a wrong output": (tensors(outputs=[{"name": "none"}]), 400),
    "too many tensors": (tensors(41, binary=True), 413),
    "tensors for no model": (tensors() | {"path": "/v2/models/none/infer"}, 404),
    "tensors for no version": (tensors() | {"path": "/v2/models/another/versions/1/infer"}, 404),
    "a wrong length of JSON": (tensors() | {"extra": "inference-header-content-length: x"}, 400),
}


@pytest.mark.parametrize("case", SAME)
async def test_both_paths_answer_alike(listener: Listener, case: str) -> None:
    wish, status = SAME[case]
    async with connected(listener.port) as connection:
        for _ in range(2):  # the second time the head is known
            fast = await exchange(connection, request(**wish))
    async with connected(listener.port) as connection:
        asgi = await exchange(connection, request(**wish, chunked=True))
    assert fast.status == asgi.status == status
    assert fast.body == asgi.body
    changing = {"server-timing", "date", "x-request-id"}
    assert {n: v for n, v in fast.headers.items() if n not in changing} == {
        n: v for n, v in asgi.headers.items() if n not in changing
    }
    assert fast.headers.keys() - {"date"} == asgi.headers.keys() - {"date"}


BEHIND = {"parameters": {"binary_data": True}}
MEMBERS: tuple[dict[str, object], ...] = (
    {},
    {"parameters": {"binary_data_output": True}},
    {"parameters": {"binary_data_output": True, "timeout": 1}},
    {"outputs": [{"name": "probabilities", **BEHIND}]},
    {"outputs": [{"name": "probabilities"}]},
    {"outputs": [{"name": "probabilities", "parameters": {"binary_data": True, "classification": 3}}]},
    {"outputs": [{"name": "none", **BEHIND}]},
    {"id": "mine", "parameters": {"binary_data_output": True}},
)
firsts = st.integers(0, 9)
wishes = st.one_of(
    st.builds(
        lambda members, first, binary: tensors(2, binary=binary, first=first, **members),
        st.sampled_from(MEMBERS),
        firsts,
        st.sampled_from([True, True, False]),
    ),
    firsts.map(lambda first: ROWS_ONLY | {"body": image(first).tobytes()}),
)


@pytest.mark.slow
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(wishes, min_size=2, max_size=9))
async def test_json_that_comes_again_is_answered_as_if_it_were_new(
    listener: Listener, wishes: list[dict[str, Any]]
) -> None:
    async with connected(listener.port) as fast, connected(listener.port) as asgi:
        for wish in wishes:
            one = await exchange(fast, request(**wish))
            other = await exchange(asgi, request(**wish, chunked=True))
            late = re.compile(rb"passed \d+\.\d+ s before")
            assert one.status == other.status
            assert late.sub(b"", one.body) == late.sub(b"", other.body)


async def test_the_fast_path_is_taken(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        wishes: list[dict[str, Any]] = [{}, {"kind": None}, {"accept": OCTETS}, {"body": RAW[:392]}]
        wishes += [SAME[case][0] for case in ("a PNG", "JSON", "a form", "wrong JSON")]
        for wish in (*wishes, tensors(id="mine"), tensors(9, binary=True), ROWS_ONLY):
            await exchange(connection, request(**wish))
        assert listener.through_asgi == []
        await exchange(connection, request(chunked=True))
        await exchange(connection, request(**tensors(20)))
        assert listener.through_asgi == ["/classify", INFER]
        await exchange(connection, request())
    assert listener.through_asgi == ["/classify", INFER]
    assert listener.counted(200) == 8
    assert listener.counted(400) == 2


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_the_fast_path_stays_on_under_the_access_log(
    predictor: LocalPredictor, tmp_path: Path, log_format: str
) -> None:
    changes: dict[str, Any] = {"access_log": True, "log_format": log_format}
    with logging_to_memory() as lines:
        async with listening(predictor, tmp_path, **changes) as listener:
            async with connected(listener.port) as connection:
                first = await exchange(connection, request())
                second = await exchange(connection, request(extra="X-Request-Id: mine"))
            assert listener.through_asgi == []
    ids = [response.headers["x-request-id"] for response in (first, second)]
    assert ids[1] == "mine"
    assert [line for line in lines.getvalue().splitlines() if all(each not in line for each in ids)] == []
    assert lines.getvalue().count("answered") == 2


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_an_access_line_names_the_key_and_never_shows_it(
    predictor: LocalPredictor, tmp_path: Path, log_format: str
) -> None:
    sent = {"shop": "key-of-the-shop-0123", "": "key-without-a-name-0", "ops": "key-of-the-ops-01234"}
    path = tmp_path / "keys"
    path.write_text(f"shop:infer:{sent['shop']}\n{sent['']}\nops:metrics:{sent['ops']}\n")
    unknown = "an-unknown-key-01234"
    with logging_to_memory() as stream:
        async with (
            listening(
                predictor, tmp_path, keys=ApiKeys.read(path), access_log=True, log_format=log_format
            ) as listener,
            connected(listener.port) as connection,
        ):
            statuses = []
            for key in (*sent.values(), unknown):
                for extra in (
                    "",
                    "\r\nX-Request-Id: abc-1",
                ):  # one head for all, and one for each
                    authorized = f"Authorization: Bearer {key}{extra}"
                    for chunked in (False, True):
                        response = await exchange(connection, request(extra=authorized, chunked=chunked))
                        statuses.append(response.status)
            assert listener.through_asgi.count("/classify") == 2 * 2 + 2 * 4
    assert statuses == [200] * 8 + [403] * 4 + [401] * 4
    text = stream.getvalue()
    assert not [key for key in (*sent.values(), unknown) if key in text]
    found = re.findall(r'"api_key_name":"([^"]*)"| api_key_name=(\S*)', text)
    assert ["".join(each) for each in found] == ["shop"] * 4 + [""] * 4 + ["ops"] * 4 + [""] * 4


async def test_an_access_line_has_no_key_name_without_keys(predictor: LocalPredictor, tmp_path: Path) -> None:
    with logging_to_memory() as stream:
        async with (
            listening(predictor, tmp_path, access_log=True) as listener,
            connected(listener.port) as connection,
        ):
            for chunked in (False, True):
                await exchange(connection, request(chunked=chunked))
    assert stream.getvalue().count("answered") == 2
    assert "api_key_name" not in stream.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["always_off", "always_on"])
async def test_the_fast_path_stays_on_under_tracing(
    predictor: LocalPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        tracing = Tracing("otlp")
        async with (
            listening(predictor, tmp_path, tracing) as listener,
            connected(listener.port) as connection,
        ):
            responses = [await exchange(connection, request()) for _ in range(3)]
            failed = await exchange(connection, request(RAW[:9]))
            assert listener.through_asgi == []
        await asyncio.to_thread(tracing.close)
        contexts = [response.headers["traceresponse"].split("-") for response in (*responses, failed)]
        assert len({trace for _, trace, _, _ in contexts}) == 4
        spans = {span.trace: span for span in collector.named("POST /classify")}
        if sampler == "always_off":
            assert {flags for _, _, _, flags in contexts} == {"00"}
            assert collector.spans == []
            return
        assert {flags for _, _, _, flags in contexts} == {"01"}
        assert spans.keys() == {trace for _, trace, _, _ in contexts}
        codes = [spans[trace].attributes["http.response.status_code"] for _, trace, _, _ in contexts]
        assert codes == [200, 200, 200, 400]
        assert len(collector.named("queue")) == len(collector.named("compute")) == 3


async def test_an_id_that_is_not_fit_is_replaced_by_another_each_time(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        unfit = request(extra="X-Request-Id: two words")
        ids = {(await exchange(connection, unfit)).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert "two words" not in ids


@pytest.mark.parametrize("wish", [{"accept": OCTETS}, {"body": png(7), "kind": None}, tensors(binary=True)])
async def test_a_request_may_come_in_any_two_pieces(listener: Listener, wish: dict[str, object]) -> None:
    whole = request(**wish)  # type: ignore[arg-type]
    async with connected(listener.port) as connection:
        expected = (await exchange(connection, whole)).body
        for cut in [*range(1, len(whole), 53), len(whole) - 1]:
            response = await exchange(connection, whole[:cut], whole[cut:])
            assert (response.status, response.body) == (200, expected), cut


@pytest.mark.slow
@given(
    digits=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(["raw", "png", "chunked", "get"]), min_size=6, max_size=6),
    cuts=st.lists(st.integers(1, 8000), max_size=6),
)
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_responses_keep_the_order_of_requests_in_any_pieces(
    predictor: LocalPredictor, tmp_path: Path, digits: list[int], kinds: list[str], cuts: list[int]
) -> None:
    forms: dict[str, Callable[[int], bytes]] = {
        "raw": lambda digit: request(image(digit).tobytes()),
        "png": lambda digit: request(png(digit), kind="image/png"),
        "chunked": lambda digit: request(image(digit).tobytes(), chunked=True),
        "get": lambda _: b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n",
    }
    stream = b"".join(forms[kind](digit) for kind, digit in zip(kinds, digits, strict=False))
    edges = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    async with listening(predictor, tmp_path) as listener, connected(listener.port) as connection:
        for start, stop in pairwise(edges):
            connection.writer.write(stream[start:stop])
            await asyncio.sleep(0.001)
        for digit, kind in zip(digits, kinds, strict=False):
            response = await asyncio.wait_for(connection.receive(), 10)
            assert response.status == 200
            if kind != "get":
                assert f'"label":"{digit}"'.encode() in response.body


async def test_a_disconnect_cancels_the_request(listener: Listener, predictor: LocalPredictor) -> None:
    held = Held(predictor)
    async with connected(listener.port) as connection:
        connection.writer.write(request())
        await held.holds(1)
    while not held.cancelled:
        await asyncio.sleep(0.005)
    assert listener.counted(499) == 1
    labels = {"model": "first-pixel", "reason": "client_left"}
    assert listener.metrics.registry.get_sample_value("inkserve_rejected_requests_total", labels) == 1


@pytest.mark.slow
async def test_an_answered_request_is_freed_at_once(listener: Listener) -> None:
    def requests() -> list[object]:
        # By type: isinstance asks each object, and some of torch's warn when they are asked.
        return [each for each in gc.get_objects() if type(each) in (FastCall, Item)]

    gc.disable()
    try:
        before = requests()  # of other tests
        async with connected(listener.port) as connection:
            assert (await exchange(connection, request())).status == 200
        async with asyncio.timeout(30):
            while len(requests()) > len(before):  # the device's thread may hold the batch for a moment
                await asyncio.sleep(0.005)
    finally:
        gc.enable()


async def test_a_disconnect_amid_the_body_is_counted(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        connection.writer.write(request()[:-100])
        await asyncio.sleep(0.05)
    while listener.state.connections:
        await asyncio.sleep(0.005)
    assert listener.counted(499) == 1


@pytest.mark.slow
async def test_a_server_that_ends_answers_what_is_in_flight_and_closes(
    listener: Listener, predictor: LocalPredictor
) -> None:
    held = Held(predictor)
    async with (
        connected(listener.port) as whole,
        connected(listener.port) as partial_body,
        connected(listener.port) as idle,
    ):
        whole.writer.write(request())
        partial_body.writer.write(request()[:-100])
        await exchange(idle, b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        await held.holds(1)
        for protocol in list(listener.state.connections):
            protocol.shutdown()
        partial_body.writer.write(request()[-100:])
        await held.holds(2)
        held.let_go()
        for connection in (whole, partial_body):
            response = await connection.receive()
            assert (response.status, response.headers["connection"]) == (200, "close")
        for connection in (whole, partial_body, idle):
            assert await connection.reader.read() == b""


@pytest.mark.slow
async def test_a_connection_is_closed_when_it_has_been_idle_and_not_before(impatient: Listener) -> None:
    async with connected(impatient.port) as connection:
        for _ in range(4):
            await exchange(connection, request())
            await asyncio.sleep(KEEP_ALIVE_SECONDS / 2)
        started = asyncio.get_running_loop().time()
        assert await asyncio.wait_for(connection.reader.read(), 5) == b""
        assert asyncio.get_running_loop().time() - started < KEEP_ALIVE_SECONDS


@pytest.mark.slow
async def test_a_request_that_takes_long_is_not_idle(impatient: Listener, predictor: LocalPredictor) -> None:
    async with connected(impatient.port) as connection:
        await exchange(connection, request())
        held = Held(predictor)
        connection.writer.write(request())
        await held.holds(1)
        await asyncio.sleep(2 * KEEP_ALIVE_SECONDS)
        held.let_go()
        assert (await connection.receive()).status == 200
        assert await asyncio.wait_for(connection.reader.read(), 5) == b""


async def test_a_known_head_follows_a_reload(
    listener: Listener, predictor: LocalPredictor, add_classifier: Callable[..., Path]
) -> None:
    async with connected(listener.port) as connection:
        assert b'"version":1' in (await exchange(connection, request())).body
        add_classifier(version=2, labels=tuple("ABCDEFGHIJ"))
        assert await predictor.reload() == []
        response = await exchange(connection, request())
    assert b'"version":2' in response.body
    assert b'"label":"H"' in response.body


async def test_tensors_follow_a_reload_and_say_how_long_they_may_take(
    listener: Listener,
    predictor: LocalPredictor,
    add_classifier: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Noted(predictor, monkeypatch).requests
    wish = tensors(binary=True, parameters={"timeout": 2_000_000, "priority": 2})
    async with connected(listener.port) as connection:
        assert b'"model_version":"1"' in (await exchange(connection, request(**wish))).body
        add_classifier(version=2)
        assert await predictor.reload() == []
        assert b'"model_version":"2"' in (await exchange(connection, request(**wish))).body
        late = await exchange(connection, request(**tensors(parameters={"timeout": 1})))
    assert late.status == 504
    assert [each.priority for each in asked[:2]] == ["low", "low"]
    assert all(0 < each.deadline - time.monotonic() <= 2 for each in asked[:2])
    assert listener.through_asgi == []


async def test_a_full_queue_rejects_before_the_body_is_read(
    listener: Listener, predictor: LocalPredictor
) -> None:
    why = "512 requests wait, expected fewer than 512"
    predictor.check_admission = lambda *_: Refusal(why)  # type: ignore[method-assign]
    async with connected(listener.port) as connection:
        seen = [await exchange(connection, request()) for _ in range(2)]
        seen.append(await exchange(connection, request(extra="X-Request-Id: mine")))
        for response in seen:
            assert (response.status, response.headers["retry-after"]) == (429, "1")
            assert response.headers["inkserve-reason"] == "queue_full"
            assert response.body == b'{"error":"%b"}' % why.encode()
        ids = [response.headers["x-request-id"] for response in seen]
        assert len({*ids}) == 3
        assert ids[2] == "mine"
        predictor.check_admission = lambda *_: None  # type: ignore[method-assign]
        assert (await exchange(connection, request())).status == 200
    assert listener.counted(429) == 3
    labels = {"model": "first-pixel", "reason": "queue_full"}
    assert listener.metrics.registry.get_sample_value("inkserve_rejected_requests_total", labels) == 3


async def test_the_body_of_a_rejected_request_is_discarded(
    listener: Listener, predictor: LocalPredictor
) -> None:
    predictor.check_admission = lambda *_: Refusal("512 requests wait")  # type: ignore[method-assign]
    whole = request(RAW * 9)
    async with connected(listener.port) as connection:
        connection.writer.write(whole[:-1000])
        with pytest.raises(TimeoutError):  # not before all has come: a client may look only then
            await asyncio.wait_for(connection.receive(), 0.05)
        predictor.check_admission = lambda *_: None  # type: ignore[method-assign]
        response = await exchange(connection, whole[-1000:-10], whole[-10:] + whole[:400])
        assert (response.status, response.body) == (429, b'{"error":"512 requests wait"}')
        assert (await exchange(connection, whole[400:])).status == 200
    assert listener.counted(429) == listener.counted(200) == 1
    predictor.check_admission = lambda *_: Refusal("512 requests wait")  # type: ignore[method-assign]
    async with connected(listener.port) as connection:
        connection.writer.write(whole[:-1000])
        await connection.writer.drain()
        await asyncio.sleep(0.05)
    while listener.counted(499) != 1:
        await asyncio.sleep(0.005)
    assert listener.through_asgi == []


async def test_admission_is_asked_once_with_what_will_be_sent(
    listener: Listener, predictor: LocalPredictor
) -> None:
    asked: list[tuple[object, ...]] = []

    def check_admission(*arguments: object) -> Refusal | None:
        asked.append(arguments)
        return None

    predictor.check_admission = check_admission  # type: ignore[assignment,method-assign]
    async with connected(listener.port) as connection:
        await exchange(connection, request(RAW * 3, path="/classify?version=1", extra="inkserve-timeout: 2"))
        await exchange(connection, request(RAW * 3, kind=None))  # might be a picture
        await exchange(connection, request(bytes(784 * 41)))  # is answered 413
        await exchange(connection, request(RAW * 3)[:-9], RAW[-9:])  # in pieces
    assert asked == [
        ("first-pixel", 1, 3, 2.0, "normal"),
        ("first-pixel", None, 1, 30.0, "normal"),
        ("first-pixel", None, 1, 30.0, "normal"),
        ("first-pixel", None, 3, 30.0, "normal"),
    ]


async def test_a_body_that_comes_in_pieces_is_received_into_the_predictors_memory(
    listener: Listener, predictor: LocalPredictor
) -> None:
    memory = np.zeros(3 * 784, np.uint8)
    asked: list[int] = []
    submitted: list[np.ndarray[Any, Any]] = []
    submit = predictor.submit

    def note(asked: InferenceRequest, *arguments: Any, **options: Any) -> Cancel:
        submitted.append(asked.inputs["images"])
        return submit(asked, *arguments, **options)

    predictor.memory = lambda size: asked.append(size) or memory.data  # type: ignore[func-returns-value,method-assign]
    predictor.submit = note  # type: ignore[assignment,method-assign]
    async with connected(listener.port) as connection:
        whole = await exchange(connection, request(RAW * 3))
        pieces = await exchange(connection, request(RAW * 3)[:-700], RAW[-700:-9], RAW[-9:])
        await exchange(connection, request(RAW * 3 + b"x")[:-9], RAW[:9])  # is answered 400
    assert pieces.body == whole.body
    assert asked == [3 * 784]
    assert memory.tobytes() == RAW * 3
    assert np.shares_memory(submitted[1], memory)


async def test_a_rejection_is_noted_for_the_next_batch(listener: Listener, predictor: LocalPredictor) -> None:
    noted: list[tuple[object, ...]] = []
    predictor.check_admission = lambda *_: Refusal("512 requests are queued")  # type: ignore[method-assign]
    predictor.note_rejection = lambda *which: noted.append(which) or 0.0  # type: ignore[func-returns-value,method-assign]
    async with connected(listener.port) as connection:
        assert (await exchange(connection, request())).status == 429
        assert (await exchange(connection, request(RAW * 3)[:-9], RAW[-9:])).status == 429
    refusal = Refusal("512 requests are queued")
    assert noted == [("first-pixel", None, refusal, 1), ("first-pixel", None, refusal, 3)]


@pytest.mark.parametrize(
    ("sent", "status", "expected"),
    [("low", 200, "low"), ("normal", 200, "normal"), ("", 400, None), ("urgent", 400, None)],
)
async def test_a_request_may_name_its_priority(
    listener: Listener, predictor: LocalPredictor, sent: str, status: int, expected: str | None
) -> None:
    seen: list[str] = []
    submit = predictor.submit

    def note(asked: InferenceRequest, *arguments: Any, **options: Any) -> Cancel:
        seen.append(asked.priority)
        return submit(asked, *arguments, **options)

    predictor.submit = note  # type: ignore[assignment,method-assign]
    async with connected(listener.port) as connection:
        for chunked in (False, True):
            response = await exchange(
                connection, request(extra=f"Inkserve-Priority: {sent}", chunked=chunked)
            )
            assert response.status == status
    assert seen == ([] if expected is None else [expected] * 2)


SHARED_LINES = (
    b"Host: test",
    b"Content-Type: application/octet-stream",
    b"Accept: application/octet-stream",
    b"Content-Length: 784",
    b"Inkserve-Timeout: 5",
)
OWN_LINES = st.one_of(
    st.builds(
        lambda name, value: name + b": " + value,
        st.sampled_from([b"X-Request-Id", b"x-request-id", b"traceparent", b"Traceparent", b"tracestate"]),
        st.one_of(
            st.sampled_from([b"an-id", b"two words", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00", b""]),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.encode),
        ),
    ),
    st.sampled_from([b"X-Request-Id:no-space", b"x-request-id: trailing ", b"traceparent:  two-spaces"]),
)


@given(st.lists(st.tuples(st.integers(0, len(SHARED_LINES)), OWN_LINES), max_size=4), st.booleans())
def test_a_head_with_headers_of_its_own_is_read_as_if_it_were_new(
    own: list[tuple[int, bytes]], folded: bool
) -> None:
    """Whatever is cached under the other headers: the shortcut may change no header and no decision."""
    lines = [*SHARED_LINES]
    for place, line in own:
        lines.insert(place, line + (b"\r\n folded" if folded else b""))
    head = b"POST /classify HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
    fast_path = FastPath({b"/classify": Always()}, Lifecycle(Metrics()))
    fast_path.learn(b"POST /classify HTTP/1.1\r\n" + b"\r\n".join(SHARED_LINES) + b"\r\n\r\n")
    expected = parse_head(head)
    for _ in range(2):
        known = fast_path.learn(head)
        assert (None if known is None else known.head) == expected


class Always:
    """An endpoint that has a plan for every head."""

    model = ""
    any_body = True

    def plan(self, _: Head) -> Any:
        return self

    def is_valid(self) -> bool:
        return True


async def test_heads_that_differ_in_their_own_headers_share_a_plan(
    listener: Listener, predictor: LocalPredictor, add_classifier: Callable[..., Path]
) -> None:
    assert listener.dispatch.fast_path is not None
    async with connected(listener.port) as connection:
        for number in range(40):
            response = await exchange(connection, request(extra=f"X-Request-Id: id-{number}"))
            assert (response.status, response.headers["x-request-id"]) == (200, f"id-{number}")
        assert listener.through_asgi == []
        assert len(listener.dispatch.fast_path.known) == 1
        add_classifier(version=2, labels=tuple("ABCDEFGHIJ"))
        assert await predictor.reload() == []
        for extra in ("X-Request-Id: id-39", "X-Request-Id: new"):
            response = await exchange(connection, request(extra=extra))
            assert b'"label":"H"' in response.body


async def test_an_unexpected_error_is_a_500(listener: Listener, predictor: LocalPredictor) -> None:
    def fail(*_: object, **__: object) -> Cancel:
        raise RuntimeError("a secret")

    predictor.submit = fail  # type: ignore[method-assign]
    async with connected(listener.port) as connection:
        response = await exchange(connection, request())
    assert (response.status, response.body) == (500, b'{"error":"internal error"}')
    assert listener.through_asgi == []


async def test_an_error_while_the_response_is_made_is_a_500(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Response:
        raise RuntimeError("a secret")

    monkeypatch.setattr(RawPlan, "respond", fail)
    async with connected(listener.port) as connection:
        for _ in range(2):  # the connection goes on
            response = await exchange(connection, request())
            assert (response.status, response.body) == (500, b'{"error":"internal error"}')
    assert listener.counted(500) == 2


def test_a_plain_head_is_read() -> None:
    head = b"POST /classify?a=1 HTTP/1.1\r\nHost: x\r\nCONTENT-LENGTH: 5\r\nX-Request-ID: r1\r\n\r\n"
    headers = {b"host": b"x", b"content-length": b"5", b"x-request-id": b"r1"}
    assert parse_head(head) == Head("POST", b"/classify", b"a=1", headers, 5, b"r1")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /classify HTTP/1.0\r\nContent-Length: 5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: five\r\n\r\n",
        b"POST /class%69fy HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"GET /classify HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"CONNECT example.org:80 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_an_unusual_head_is_left_alone(head: bytes) -> None:
    assert parse_head(head) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_left_alone(head: bytes) -> None:
    parse_head(head + b"\r\n\r\n")
