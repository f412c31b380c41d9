"""Bodies over real sockets: honoured as declared, or refused; never 500."""

import asyncio
import base64
import contextlib
import gzip
import http.client
import json
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.attacks import ATTACKS, FORM, JSON_BODY, forget_peak, form, resident_bytes
from tests.support.live import RAW, ROOT, Service, connected, serving
from tests.support.pictures import FORMATS, encoded, seven

CASES = ROOT.parent / "shared" / "cases"
SEVEN = encoded(seven(), "PNG")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = tmp_path_factory.mktemp("models")
    for name in ("cnn-pruned", "gan"):
        (models / name).symlink_to(ROOT / "models" / name)
    with serving("--models-dir", str(models)) as service:
        drain = threading.Thread(
            target=lambda: service.lines.extend(service.process.stderr or ()), daemon=True
        )
        drain.start()
        yield service
        assert service.stop() == 0
        drain.join()


async def ask(
    service: Service, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, object], dict[str, str]]:
    async with connected(service.port) as connection:
        response = await connection.ask("POST", path, body, headers)
        return response.status, json.loads(response.body), response.headers


def deflate(body: bytes, bits: int) -> bytes:
    compressor = zlib.compressobj(wbits=bits)
    return compressor.compress(body) + compressor.flush()


CODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": lambda body: deflate(body, 15),
    "Deflate": lambda body: deflate(body, -15),
    "identity": lambda body: body,
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/classify", "application/octet-stream", bytes(784)),
        ("/classify", "", bytes(784 * 64)),
        ("/classify", "image/png", SEVEN),
        ("/classify", "", SEVEN),
        ("/classify", FORM["content-type"], form(SEVEN)),
        ("/classify", "application/json", json.dumps([[0] * 784] * 30).encode()),
        ("/generate", "application/json", b'{"seed":1}'),
    ],
)
async def test_a_content_coding_is_honoured(
    service: Service, coding: str, path: str, kind: str, body: bytes
) -> None:
    headers = ({"content-type": kind} if kind else {}) | {"accept": "application/json"}
    plain = await ask(service, path, body, headers)
    assert plain[0] == 200
    coded = await ask(service, path, CODED[coding](body), headers | {"content-encoding": coding})
    assert coded[:2] == plain[:2]


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip, identity", "compress", "\xff", ","])
@pytest.mark.parametrize("path", ["/classify", "/generate"])
async def test_another_content_coding_is_refused(service: Service, coding: str, path: str) -> None:
    status, body, headers = await ask(service, path, bytes(784), RAW | {"content-encoding": coding})
    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate, identity"), body
    assert "expected gzip, deflate or identity" in str(body["error"])


async def test_another_media_type_is_refused_without_accept_encoding(service: Service) -> None:
    status, _, headers = await ask(service, "/classify", bytes(784), {"content-type": "text/plain"})
    assert status == 415
    assert "accept-encoding" not in headers


def padded(content: bytes) -> bytes:
    """The file with zeros behind it, as long as a multiple of a row."""
    return content + bytes(-len(content) % 784)


@pytest.mark.parametrize("name", FORMATS)
async def test_a_picture_as_long_as_rows_is_never_rows(service: Service, name: str) -> None:
    content = padded(encoded(seven(), name))
    assert len(content) % 784 == 0
    kind = {"HEIF": "heic"}.get(name, name.lower())
    for headers, body in (
        ({"content-type": f"image/{kind}"}, content),
        ({}, content),
        (FORM, form(content)),
        (FORM, form(content, f"Content-Type: image/{kind}")),
        (FORM, form(content, "Content-Type: application/octet-stream")),
        (JSON_BODY, json.dumps(base64.b64encode(content).decode()).encode()),
    ):
        status, answer, _ = await ask(service, "/classify", body, headers)
        predictions = answer.get("predictions")
        assert (status == 200 and isinstance(predictions, list) and len(predictions) == 1) or (
            status == 400 and "broken" in str(answer["error"])
        ), answer


@pytest.mark.parametrize("kind", ["image/svg+xml", "image/jxl", "application/pdf", "text/plain"])
async def test_a_part_of_another_type_is_refused(service: Service, kind: str) -> None:
    body = form(bytes(784), f"Content-Type: {kind}")
    status, answer, _ = await ask(service, "/classify", body, FORM)
    assert status == 415, answer
    assert kind in str(answer["error"])


def base64_forms(content: bytes) -> dict[str, str]:
    plain = base64.b64encode(content).decode()
    url_safe = base64.urlsafe_b64encode(content).decode()
    return {
        "unpadded": plain.rstrip("="),
        "url-safe": url_safe,
        "url-safe and unpadded": url_safe.rstrip("="),
        "wrapped": base64.encodebytes(content).decode(),
        "wrapped by CRLF": "\r\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)),
        "data": f"data:image/png;base64,{plain}",
        "data without a type": f"data:;base64,{plain}",
        "data with a parameter": f"DATA:image/png;name=a.png;base64,{plain}",
        "data, url-safe and wrapped": f"data:image/png;base64,{url_safe[:40]}\n{url_safe[40:]}",
    }


@pytest.mark.parametrize("name", base64_forms(b""))
async def test_every_form_of_base64_is_read(service: Service, name: str) -> None:
    plain = json.dumps([base64.b64encode(SEVEN).decode()]).encode()
    expected = await ask(service, "/classify", plain, JSON_BODY)
    sent = json.dumps({"images": [base64_forms(SEVEN)[name]]}).encode()
    assert (await ask(service, "/classify", sent, JSON_BODY))[:2] == expected[:2]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/classify", [[[0.0, 1.0] * 14] * 28], 400, "pixels in 0..1, expected 0..255: multiply them by 255"),
        ("/classify", [[[0.25, 0.5] * 14] * 28], 400, "pixels in 0..1"),
        ("/classify", [[True, 5] * 392], 400, "images holds True, expected numbers"),
        ("/classify", {"image": 1}, 400, "image is unknown, expected one of images"),
        ("/classify", ["data:image/svg+xml;base64,AAAA"], 415, "image/svg+xml"),
        ("/generate", {"seed": True}, 400, "seed is 'True', expected"),
        ("/generate", {"count": True}, 400, "count is 'True', expected"),
        ("/generate", {"label": False}, 400, "label is 'False', expected"),
        ("/generate", {"version": True}, 400, "version is 'True', expected"),
        ("/generate", {"sed": 1}, 400, "sed is unknown, expected one of"),
    ],
)
async def test_wrong_json_says_what_was_seen(
    service: Service, path: str, body: object, status: int, message: str
) -> None:
    seen, answer, _ = await ask(service, path, json.dumps(body).encode(), JSON_BODY)
    assert (seen, message in str(answer["error"])) == (status, True), answer


@pytest.mark.parametrize("path", ["/classify", "/generate"])
@pytest.mark.parametrize("start", ["", '{"images":', '{"z":', '{"seed":', '{"label":'])
@pytest.mark.parametrize("depth", [900, 1023, 5000])
async def test_deep_json_is_refused(service: Service, path: str, start: str, depth: int) -> None:
    body = start + "[" * depth + "]" * depth + ("}" if start else "")
    status, answer, _ = await ask(service, path, body.encode(), JSON_BODY)
    assert status == 400, answer
    assert len(str(answer["error"])) < 300


@pytest.mark.parametrize(
    "case", ["exif-negative.jpg", "desk-strip.png", "photo-letterbox.jpg", "seven-784k.webp"]
)
async def test_no_picture_that_failed_before_gives_a_500(service: Service, case: str) -> None:
    if not CASES.exists():
        pytest.skip("shared/cases is not here")
    content = (CASES / case).read_bytes()
    status, answer, _ = await ask(service, "/classify", content, {})
    assert status in (200, 400), answer


@contextlib.asynccontextmanager
async def probing(service: Service) -> AsyncIterator[list[int]]:
    """Ask for liveness again and again; yields the statuses seen."""
    seen: list[int] = []

    async def probe() -> None:
        async with connected(service.port) as connection:
            while True:
                seen.append((await connection.ask("GET", "/v2/health/live")).status)
                await asyncio.sleep(0.01)

    task = asyncio.ensure_future(probe())
    yield seen
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
async def test_the_work_of_a_request_is_bounded(service: Service, name: str) -> None:
    path, headers, body, count, statuses = ATTACKS[name]()
    forget_peak(service.process.pid)
    before = resident_bytes(service.process.pid)

    async def attack() -> int:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"http://127.0.0.1:{service.port}{path}"
            with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # rejected before it was all sent
                return (await client.post(url, content=body, headers=headers)).status_code
            return 413

    async with probing(service) as live:
        seen = await asyncio.gather(*(attack() for _ in range(count)))
    assert set(seen) <= {*statuses, 429}  # too many bodies at once wait to be decoded
    assert set(seen) & statuses
    assert set(live) == {200}
    # The bar is 16 MB; what the allocator keeps of the sockets' buffers comes on top.
    assert resident_bytes(service.process.pid, "VmHWM") - before < 32_000_000


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda at, cut, new: content[:at] + new + content[at + cut :],
        st.integers(0, len(content)),
        st.integers(0, 40),
        st.binary(max_size=12),
    )


SAMPLES = [
    *(({}, encoded(seven(), name)) for name in FORMATS),
    *((FORM, form(encoded(seven(), name), "Content-Type: image/png")) for name in ("PNG", "WEBP")),
    (JSON_BODY, json.dumps({"images": ["data:image/png;base64,AAAA", [0.5] * 784]}).encode()),
    (JSON_BODY, b'{"seed":1,"z":[[1,2],[3,"AAAA"]],"label":"7","count":2}'),
]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_bytes_give_digits_or_a_4xx(service: Service, data: st.DataObject) -> None:
    headers, sample = data.draw(st.sampled_from(SAMPLES))
    body = data.draw(mutated(sample))
    path = data.draw(st.sampled_from(["/classify", "/generate"]))
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    assert answer.status == 200 or 400 <= answer.status < 500, answer.read()
    connection.close()
