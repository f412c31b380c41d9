"""The addresses that the service listens on, on real sockets."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.addresses import open_listeners, parse_host, ready_line, url_of
from service.errors import InkserveError, SettingsError
from service.settings import load_settings

IPV6 = Path("/proc/net/if_inet6")
needs_ipv6 = pytest.mark.skipif(not IPV6.exists() or not IPV6.read_text(), reason="this machine has no IPv6")


@contextmanager
def listening(host: str) -> Iterator[list[socket.socket]]:
    listeners = open_listeners(host, 0)
    try:
        for listener in listeners:
            listener.listen()
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def reachable(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@given(st.ip_addresses().map(str) | st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?", fullmatch=True))
def test_an_address_is_read_with_and_without_brackets(host: str) -> None:
    assert parse_host(host) == host
    if ":" in host:
        assert parse_host(f"[{host}]") == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "*",
        "[]",
        "[::1",
        "::1]",
        "[127.0.0.1]",
        "[::1]:8000",
        "0.0.0.0:80",
        "http://[::1]",
        "a:1",
        "a/b",
    ],
)
def test_what_is_no_host_stops_the_start(host: str) -> None:
    with pytest.raises(SettingsError, match=r"host: expected an? .*\(seen: "):
        load_settings(["--host", host])


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("::", {"127.0.0.1", "::1"}),
    ],
)
def test_a_host_opens_its_addresses_and_no_other(host: str, reached: set[str]) -> None:
    with listening(host) as listeners:
        port = listeners[0].getsockname()[1]
        assert {address for address in ("127.0.0.1", "::1") if reachable(address, port)} == reached


def test_a_name_opens_every_address_that_it_has_at_one_port() -> None:
    found = {info[4][0] for info in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    with listening("localhost") as listeners:
        assert {listener.getsockname()[0] for listener in listeners} <= found
        (port,) = {listener.getsockname()[1] for listener in listeners}
        assert all(reachable(listener.getsockname()[0], port) for listener in listeners)


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_the_url_in_the_log_leads_to_the_service(host: str) -> None:
    with listening(host) as listeners:
        url = urlsplit(url_of(listeners[0]))
        assert (url.scheme, url.path) == ("http", "")
        assert url.hostname is not None
        assert url.port is not None
        assert reachable(url.hostname, url.port)
        line = ready_line(listeners[0], "/digits", "http", playground=True)
        without = ready_line(listeners[0], "/digits", "http", playground=False)
    assert line.startswith(f"ready at {url.geturl()}")
    assert line.endswith(", playground at /digits/, documentation at /digits/docs")
    assert without == line.replace(" playground at /digits/,", "")
    assert (" on every address," in line) == (host in ("0.0.0.0", "::"))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(InkserveError, match=rf"{host}:0 cannot be listened on: "):
        open_listeners(host, 0)


def test_a_port_in_use_is_an_error() -> None:
    with listening("127.0.0.1") as listeners:
        port = listeners[0].getsockname()[1]
        with pytest.raises(InkserveError, match=rf"127\.0\.0\.1:{port} cannot be listened on: .*in use"):
            open_listeners("127.0.0.1", port)
