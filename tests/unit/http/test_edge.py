"""What browsers and proxies send: HEAD, OPTIONS, other origins, path prefixes, lists of hops.

A real listener and real connections; each thing is asked on the fast path and through ASGI.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import EngineError, QueueFull, SettingsError
from service.http.edge import Edge
from service.http.headers import INFERENCE_HEADER
from service.http.proxies import Proxies
from service.serving.local import LocalPredictor
from service.settings import RESERVED, Settings, load_settings
from tests.support.http import OCTETS, RAW, exchange, request
from tests.support.listener import Listener, listening
from tests.support.live import connected
from tests.support.log_stream import logging_to_memory
from tests.support.models import LATENT

PATHS = {
    "/": "GET",
    "/classify": "POST",
    "/decode": "POST",
    "/docs": "GET",
    "/docs/start.js": "GET",
    "/docs/swagger-ui.css": "GET",
    "/encode": "POST",
    "/explain": "POST",
    "/generate": "GET, POST",
    "/interpolate": "GET",
    "/metrics": "GET",
    "/models": "GET",
    "/models/ramp": "GET",
    "/models/ramp/graph": "GET",
    "/openapi.json": "GET",
    "/playground/app.js": "GET",
    "/reconstruct": "POST",
    "/search": "GET, POST",
    "/v2": "GET",
    "/v2/health/live": "GET",
    "/v2/health/ready": "GET",
    "/v2/models/first-pixel/infer": "POST",
    "/v2/models/first-pixel/versions/1/infer": "POST",
    "/v2/models/ramp": "GET",
    "/v2/models/ramp/config": "GET",
    "/v2/models/ramp/ready": "GET",
    "/v2/models/ramp/versions/1": "GET",
    "/v2/models/ramp/versions/1/config": "GET",
    "/v2/models/ramp/versions/1/ready": "GET",
    "/v2/repository/index": "POST",
}
"""Every path, and the methods that do something there."""

GETS = [path for path in PATHS if "GET" in PATHS[path]]
CHANGING = {"date", "server-timing", "x-request-id"}
KEY = "a-key-of-the-tests-0123"
ORIGIN = "https://app.example.com"
OTHER = "https://evil.example.com"

unhurried = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
async def listener(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(predictor, tmp_path) as listener:
        yield listener


def asking(listener: Listener, **options: Any) -> httpx.AsyncClient:
    # No connection is encrypted. With the default each client would read the machine's certificates: 30 ms.
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}", verify=False, **options)


def allowed(methods: str) -> str:
    every = {*methods.split(", "), "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    return ", ".join(sorted(every))


async def test_a_304_has_no_body_and_the_connection_goes_on(listener: Listener) -> None:
    """A stray body, or a length that none follows, would be read as the next response's head, or awaited."""
    async with connected(listener.port) as connection:
        first = await connection.ask("GET", "/generate?seed=1")
        for method in ("GET", "HEAD"):
            sent = {"if-none-match": first.headers["etag"]}
            cached = await connection.ask(method, "/generate?seed=1", headers=sent)
            assert cached.status == 304
            assert not {"content-length", "content-type", "transfer-encoding"} & cached.headers.keys()
            assert cached.headers["etag"] == first.headers["etag"]
        again = await connection.ask("GET", "/generate?seed=1")
        live = await connection.ask("GET", "/v2/health/live")
    assert (again.body, live.status) == (first.body, 200)


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.parametrize("path", [*GETS, "/nothing", "/docs/nothing", "/models/nothing", "/generate?count=0"])
async def test_head_has_the_status_and_the_headers_of_get_and_no_body(listener: Listener, path: str) -> None:
    query = "?seed=1" if path in ("/generate", "/interpolate") else ""
    async with asking(listener) as client:
        get = await client.get(path + query)
        head = await client.head(path + query)
        after = await client.get("/v2/health/live")  # a body would be read as the next response's head
    assert (head.status_code, head.content, after.status_code) == (get.status_code, b"", 200)
    changing = CHANGING | ({"content-length"} if path == "/metrics" else set())
    assert {n: v for n, v in head.headers.items() if n not in changing} == {
        n: v for n, v in get.headers.items() if n not in changing
    }
    assert int(head.headers["content-length"]) > 0 or get.content == b""


@pytest.mark.usefixtures("other_tasks")
async def test_allow_names_the_methods_that_a_path_has(listener: Listener) -> None:
    methods = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
    async with asking(listener) as client:
        for path, method in itertools.product(PATHS, methods):
            where, names = f"{method} {path}", allowed(PATHS[path])
            response = await client.request(method, path)
            if method == "OPTIONS":
                assert (response.status_code, response.content) == (204, b""), where
                assert "content-length" not in response.headers, where
            else:
                assert (response.status_code == 405) == (method not in names), where
            if method == "OPTIONS" or response.status_code == 405:
                assert response.headers["allow"] == names, where
            if response.status_code == 405 and method != "HEAD":
                assert response.json() == {"error": f"method is {method}, expected {names}"}


async def test_options_needs_no_key_and_the_rest_does(predictor: LocalPredictor, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    from service.http.api_keys import ApiKeys
    from service.http.app import create_app
    from service.observability.metrics import Metrics
    from tests.support.http import settings

    app = create_app(predictor, settings(tmp_path), Metrics(), keys=ApiKeys.read(tmp_path / "keys"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/classify", "/models", "/models/ramp"):
            assert (await client.options(path)).status_code == 204
            for method in ("GET", "HEAD", "POST", "DELETE"):
                assert (await client.request(method, path)).status_code == 401, (method, path)


async def test_requests_are_counted_by_the_routes_that_they_name(listener: Listener) -> None:
    async with asking(listener) as client:
        for path in ("/classify", "/classify/"):
            await client.options(path)
        await client.head("/models/")
        await client.put("/models/ramp")
        await client.options("/nothing")
        text = (await client.get("/metrics")).text
    for route, status, count in (
        ("/classify", 204, 2),
        ("/models", 200, 1),
        ("/models/{name}", 405, 1),
        ("other", 404, 1),
    ):
        line = f'inkserve_requests_total{{model="",route="{route}",status="{status}"}} {count}.0'
        assert line in text, route


# Paths and redirects


SEGMENTS = st.sampled_from(
    ["", "classify", "docs", "digits", "models", "ramp", "v2", "health", "live", "..", "evil.example"]
)


@pytest.mark.usefixtures("other_tasks")
@unhurried
@given(segments=st.lists(SEGMENTS, min_size=1, max_size=5), method=st.sampled_from(["GET", "HEAD", "POST"]))
async def test_no_response_repeats_the_host_that_was_sent(
    listener: Listener, segments: list[str], method: str
) -> None:
    lines = (f"{method} /{'/'.join(segments)} HTTP/1.1", "Host: evil.test", "X-Forwarded-Host: evil.test")
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write("\r\n".join((*lines, "Content-Length: 0", "Connection: close")).encode() + b"\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"evil.test" not in answer
    head = answer.partition(b"\r\n\r\n")[0].decode().lower()
    for line in head.split("\r\n"):
        if line.startswith("location:"):
            assert urlsplit(line.partition(":")[2].strip())[:2] == ("", "")


@pytest.mark.usefixtures("other_tasks")
@pytest.mark.slow
@pytest.mark.parametrize("root", ["", "/digits", "/a/b"])
async def test_a_path_is_found_with_a_prefix_and_with_a_slash(
    predictor: LocalPredictor, tmp_path: Path, root: str
) -> None:
    async with listening(predictor, tmp_path, root_path=root) as listener, asking(listener) as client:
        for path in [path for path in PATHS if path != "/"]:
            empty = "GET" in PATHS[path] or path.endswith("/index")
            body = b"" if empty else bytes(4 * LATENT) if path == "/decode" else RAW
            query = "?seed=1" if path in ("/generate", "/interpolate") else ""
            method = PATHS[path].partition(",")[0]
            kind = {"content-type": OCTETS} if path == "/decode" else {}
            kind |= {INFERENCE_HEADER.name: "0"} if path.endswith("/infer") else {}
            status = 400 if path == "/search" else 200  # none of the models here understands a prompt
            plain = await client.request(method, path + query, content=body, headers=kind)
            for sent in (f"{path}/", root + path, f"{root}{path}/"):
                response = await client.request(
                    method, sent + query, content=body, headers=kind, follow_redirects=True
                )
                assert response.status_code == plain.status_code == status, sent
                assert response.headers["content-type"] == plain.headers["content-type"]
                if path not in ("/metrics", "/explain"):  # what these tell changes
                    assert response.content == plain.content, sent


@pytest.mark.parametrize("root", ["", "/digits"])
@pytest.mark.parametrize("strips", [True, False])
async def test_behind_a_prefix_the_page_and_its_files_are_found(
    predictor: LocalPredictor, tmp_path: Path, root: str, strips: bool
) -> None:
    """A browser that only reaches the service through a proxy that adds a prefix, and removes it or not."""
    if not root and not strips:
        pytest.skip("a service that knows no prefix cannot get one")
    prefix = root or "/elsewhere"
    async with listening(predictor, tmp_path, root_path=root) as listener, asking(listener) as client:

        async def get(url: str) -> httpx.Response:
            for _ in range(3):
                assert url.startswith(prefix), "the browser left the proxy's prefix"
                asked = (url[len(prefix) :] or "/") if strips else url
                response = await client.get(asked, headers={"accept": "text/html,*/*;q=0.8"})
                if not response.is_redirect:
                    return response
                url = urljoin(url, response.headers["location"])
            pytest.fail(f"{url} redirects for ever")

        for start in ("/docs", "/docs/"):
            page = await get(prefix + start)
            assert "swagger-ui" in page.text, start
        for start in ("/", *([""] if root else [])):
            page = await get(prefix + start)
            (named,) = re.findall(r'src="([^"]+app.js)"', page.text)
            assert "DrawView" in (await get(urljoin(prefix + start, named))).text
        script = await get(urljoin(f"{prefix}/docs", "docs/start.js"))
        assert "SwaggerUIBundle" in script.text
        document = (await get(urljoin(f"{prefix}/docs", "openapi.json"))).json()
        assert [server["url"] for server in document.get("servers", [])] == ([root] if root else [])
        unknown = (await client.get(f"{root}/nothing")).json()
        assert unknown == {"error": f"path /nothing is unknown, see {root}/docs"}


async def test_a_prefix_stays_on_the_fast_path(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with listening(predictor, tmp_path, root_path="/digits") as listener:
        async with connected(listener.port) as connection:
            for path in ("/classify", "/digits/classify", "/digits/classify/"):
                assert (await exchange(connection, request(path=path))).status == 200
        assert listener.through_asgi == []
        assert listener.counted(200) == 3


@pytest.mark.parametrize("path", PATHS)
def test_a_prefix_that_could_be_a_path_of_our_own_is_refused(path: str) -> None:
    if path != "/":
        with pytest.raises(SettingsError, match="root_path: expected a path that does not begin like"):
            load_settings(["--root-path", f"{path}/x"])
    assert {each.split("/")[1] for each in PATHS} == {"", *RESERVED}


@pytest.mark.slow
@given(
    st.from_regex(r"(/[a-z0-9]{1,4}){1,3}", fullmatch=True),
    st.from_regex(r"(/[a-z]{1,4}){0,3}/?", fullmatch=True),
)
def test_a_prefix_is_removed_once_and_only_as_a_whole(root: str, path: str) -> None:
    edge = Edge(root)
    assert edge.route_path(root + (path if path.startswith("/") else "")) == Edge().route_path(path or "/")
    assert edge.route_path(f"{root}x{path}") == Edge().route_path(f"{root}x{path}")


# Other origins


async def answers(listener: Listener, origin: str | None, **wish: Any) -> list[tuple[int, dict[str, str]]]:
    """The responses to a POST, in one piece and in chunks."""
    extra = f"Origin: {origin}" if origin else ""
    async with connected(listener.port) as connection:
        both = [
            await exchange(connection, request(**wish, extra=extra, chunked=chunked))
            for chunked in (False, True)
        ]
    return [(response.status, response.headers) for response in both]


@pytest.mark.parametrize("setting", [ORIGIN, f"http://localhost:3000, {ORIGIN}", "*", None])
@pytest.mark.parametrize(
    ("wish", "fault", "status"),
    [
        ({}, None, 200),
        ({"body": RAW[1:]}, None, 400),
        ({"path": "/classify?model=none"}, None, 404),
        ({"path": "/nothing"}, None, 404),
        ({"path": "/models"}, None, 405),
        ({}, RuntimeError("a bug"), 500),
        ({}, EngineError("it failed"), 500),
    ],
)
async def test_a_page_of_an_allowed_origin_reads_every_response(
    predictor: LocalPredictor,
    tmp_path: Path,
    setting: str | None,
    wish: dict[str, Any],
    fault: Exception | None,
    status: int,
) -> None:
    if fault is not None:

        def submit(*_: object, **__: object) -> None:
            raise fault

        predictor.submit = submit  # type: ignore[assignment,method-assign]
    async with listening(predictor, tmp_path, cors_origins=setting) as listener:
        from_page = await answers(listener, ORIGIN, **wish)
        from_other = await answers(listener, OTHER, **wish)
    for seen, headers in from_page:
        assert seen == status
        expected = {None: None, "*": "*"}.get(setting, ORIGIN)
        assert headers.get("access-control-allow-origin") == expected
        if setting is not None:
            exposed = headers["access-control-expose-headers"].lower().split(", ")
            assert {"x-request-id", "retry-after", "server-timing", "inkserve-shape"} <= {*exposed}
            assert setting == "*" or headers["vary"] == "Origin"
    for seen, headers in from_other:
        assert seen == status
        assert headers.get("access-control-allow-origin") == ("*" if setting == "*" else None)


async def test_a_rejection_and_a_missing_key_are_readable_too(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    from service.http.api_keys import ApiKeys
    from service.http.app import create_app
    from service.observability.metrics import Metrics
    from tests.support.http import settings

    def full(*_: object, **__: object) -> None:
        raise QueueFull("the queue is full")

    (tmp_path / "keys").write_text(KEY)
    configured = settings(tmp_path).model_copy(update={"cors_origins": ORIGIN})
    app = create_app(predictor, configured, Metrics(), keys=ApiKeys.read(tmp_path / "keys"))
    predictor.submit = full  # type: ignore[assignment,method-assign]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        missing = await client.post("/classify", content=RAW, headers={"origin": ORIGIN})
        headers = {"origin": ORIGIN, "authorization": f"Bearer {KEY}"}
        rejected = await client.post("/classify", content=RAW, headers=headers)
    assert missing.status_code == 401
    assert rejected.status_code in (429, 503)
    for response in (missing, rejected):
        assert response.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("path", ["/classify", "/generate", "/models", "/digits/classify"])
@pytest.mark.parametrize("setting", [ORIGIN, "*", None])
async def test_a_preflight_is_answered_if_the_setting_allows_it(
    predictor: LocalPredictor, tmp_path: Path, setting: str | None, path: str
) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, inkserve-timeout",
    }
    async with (
        listening(predictor, tmp_path, cors_origins=setting, root_path="/digits") as listener,
        asking(listener) as client,
    ):
        good = await client.options(path, headers=asked | {"origin": ORIGIN})
        other = await client.options(path, headers=asked | {"origin": OTHER})
        method = await client.options(
            path, headers=asked | {"origin": ORIGIN, "access-control-request-method": "DELETE"}
        )
    if setting is None:
        for response in (good, other, method):
            assert response.status_code == 204
            assert not [name for name in response.headers if name.startswith("access-control")]
        return
    assert (good.status_code, good.content) == (204, b"")
    assert good.headers["access-control-allow-origin"] == (ORIGIN if setting == ORIGIN else "*")
    assert good.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    assert "POST" in good.headers["access-control-allow-methods"]
    assert int(good.headers["access-control-max-age"]) > 0
    assert good.headers["vary"].startswith("Origin")
    assert (method.status_code, other.status_code) == (400, 204 if setting == "*" else 400)
    assert method.json() == {"error": "Disallowed CORS method, see the setting cors_origins"}
    if setting != "*":
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "origins", ["https://a.example/", "a.example", "*,https://a.example", "https://A.example", "https://a:b"]
)
def test_what_no_browser_sends_as_an_origin_stops_the_start(origins: str) -> None:
    with pytest.raises(SettingsError, match=r"cors_origins: .*expected.*\(seen: "):
        load_settings(["--cors-origins", origins])


# Proxies


ADDRESSES = st.sampled_from(
    [
        "10.0.0.1",
        "10.0.0.2",
        "192.0.2.7",
        "203.0.113.9",
        "2001:db8::7",
        "fd00::1",
        "fd00::2",
        "::ffff:10.0.0.1",
    ]
)
NOISE = st.sampled_from(["", "unknown", "_hidden", "10.0.0.1:x", "[::1", "999.1.1.1", "\x1b[31m", "a" * 300])
TRUSTED = "10.0.0.0/8, fd00::/8"


def as_sent(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def plainly(address: str) -> str:
    return address.removeprefix("::ffff:")


def is_trusted(address: str) -> bool:
    return any(ip_address(plainly(address)) in ip_network(part) for part in TRUSTED.split(", "))


def expected_client(peer: str, hops: Iterable[str]) -> str:
    """The nearest address that is no proxy of ours; the farthest of ours if every one is."""
    near_to_far = [peer, *reversed([*hops])]
    return plainly(next((each for each in near_to_far if not is_trusted(each)), near_to_far[-1]))


@given(
    peer=ADDRESSES,
    hops=st.lists(st.tuples(ADDRESSES, st.none() | st.integers(1, 65535)), max_size=6),
    space=st.sampled_from(["", " ", "  "]),
)
def test_the_client_is_the_nearest_hop_that_is_not_trusted(
    peer: str, hops: list[tuple[str, int | None]], space: str
) -> None:
    sent = f",{space}".join(as_sent(*hop) for hop in hops).encode()
    proxies = Proxies(TRUSTED)
    assert proxies.client(peer, sent if hops else None) == expected_client(peer, [hop for hop, _ in hops])
    assert Proxies().client(peer, sent) == plainly(peer)  # nobody is trusted by default


@given(peer=ADDRESSES, hops=st.lists(ADDRESSES | NOISE, max_size=4), trusted=st.sampled_from([TRUSTED, "*"]))
def test_whatever_is_sent_the_client_is_an_address(peer: str, hops: list[str], trusted: str) -> None:
    client = Proxies(trusted).client(peer, ",".join(hops).encode("latin-1"))
    assert str(ip_address(client)) == client
    assert client == plainly(peer) or client in {plainly(hop) for hop in hops}


@pytest.mark.parametrize("trusted", [None, "127.0.0.1", "127.0.0.0/8,10.0.0.0/8", "*", "10.0.0.0/8"])
async def test_the_access_log_names_the_client_on_both_paths(
    predictor: LocalPredictor, tmp_path: Path, trusted: str | None
) -> None:
    heads = [
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-For: 203.0.113.9, 10.0.0.5",
        "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 10.0.0.5",
        "X-Forwarded-For: 198.51.100.1\r\nx-request-id: abc\r\nx-forwarded-for: 203.0.113.9",
        "X-Forwarded-For: nonsense",
        "X-Forwarded-For: ",
        "Forwarded: for=203.0.113.9",
        "X-Real-IP: 203.0.113.9",
    ]
    changes: dict[str, Any] = {"access_log": True, "log_format": "json", "trusted_proxies": trusted}
    expected = []
    with logging_to_memory() as stream:
        async with listening(predictor, tmp_path, **changes) as listener:
            for extra in heads:
                async with connected(listener.port) as connection:
                    for chunked in (False, False, True):
                        response = await exchange(connection, request(extra=extra, chunked=chunked))
                        assert response.status == 200
                lines = [line for line in extra.split("\r\n") if line.lower().startswith("x-f")]
                sent = ",".join(line.partition(":")[2].strip() for line in lines).encode()
                client = Proxies(trusted).client("127.0.0.1", sent if lines else None)
                if trusted in (None, "10.0.0.0/8") or not lines:
                    assert client == "127.0.0.1"
                expected += [client] * 3
    logged = [json.loads(line) for line in stream.getvalue().splitlines() if line.startswith("{")]
    assert [line["client"] for line in logged] == expected


async def test_heads_of_many_clients_behind_a_proxy_share_one_plan(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    async with listening(predictor, tmp_path, trusted_proxies="127.0.0.1") as listener:
        async with connected(listener.port) as connection:
            for number in range(20):
                extra = f"X-Forwarded-For: 203.0.113.{number}\r\nX-Real-IP: 203.0.113.{number}"
                assert (await exchange(connection, request(extra=extra))).status == 200
        assert listener.through_asgi == []
        fast_path = listener.dispatch.fast_path
        assert fast_path is not None
        assert len(fast_path.known) == 1


@pytest.mark.parametrize("trusted", ["proxy", "10.0.0.1/8", "10.0.0.0/33"])
def test_what_is_no_network_stops_the_start(trusted: str) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies: "):
        load_settings(["--trusted-proxies", trusted])


def test_a_trusted_proxys_scheme_is_believed(tmp_path: Path) -> None:
    headers = [(b"x-forwarded-proto", b"https")]
    assert Proxies("10.0.0.0/8").scheme("10.0.0.1", headers) == "https"
    assert Proxies("10.0.0.0/8").scheme("192.0.2.1", headers) is None
    assert Proxies("10.0.0.0/8").scheme("10.0.0.1", [(b"x-forwarded-proto", b"gopher")]) is None
    assert Edge.of(Settings(models_dir=tmp_path)).proxies.scheme("127.0.0.1", headers) is None


@pytest.mark.parametrize("path", ["/models", "/nothing", "/generate", "/classify"])
async def test_a_body_that_comes_after_its_response_is_not_the_next_request(
    listener: Listener, path: str
) -> None:
    """The response to a bad head does not wait for the body: what a client sends then belongs to it still."""
    smuggled = b"DELETE /models HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(listener.port) as connection, asyncio.timeout(30):
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: x",
            "Inkserve-Timeout: x",
            f"Content-Length: {len(smuggled)}",
        )
        connection.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert (await connection.receive()).status in (400, 404, 405)
        connection.writer.write(smuggled)
        assert (await connection.ask("GET", "/v2/health/live")).status == 200
