"""HTTP over TLS and mutual TLS, with certificates made on the spot."""

import contextlib
import json
import logging
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.errors import SettingsError
from service.http.tls import Certificates, open_tls
from service.settings import load_settings
from tests.support.authorities import Authority
from tests.support.live import ROOT, serving

PASSWORD = "a password of the test"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


def server_flags(files: tuple[Path, Path]) -> tuple[str, ...]:
    return "--ssl-certfile", str(files[0]), "--ssl-keyfile", str(files[1])


def client_of(authority: Authority, port: int, certificate: tuple[Path, Path] | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}", timeout=30)


def check_answers(client: httpx.Client) -> None:
    for _ in range(3):  # one connection, both paths
        answer = client.post("/classify", content=bytes(784))
        assert (answer.status_code, answer.json()["predictions"][0]["label"]) == (200, "0")
        chunked = client.post("/classify", content=iter([bytes(400), bytes(384)]))
        assert chunked.status_code == 200
    assert client.get("/v2/health/live").status_code == 200
    many = client.post("/classify", content=bytes(784 * 300))
    assert len(json.loads(many.content)["predictions"]) == 300


@pytest.mark.parametrize(
    "workers", ["0", pytest.param("1", marks=pytest.mark.slow)], ids=["one process", "split"]
)
def test_clients_are_answered_over_tls(
    add_classifier: Callable[..., Path], tmp_path: Path, folder: Path, workers: str
) -> None:
    add_classifier()
    authority = Authority(folder, "authority")
    certificate, key = authority.issue("server", PASSWORD)
    (folder / "password").write_text(PASSWORD + "\n")
    flags: tuple[str, ...] = (
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        "--workers",
        workers,
    )
    flags += ("--ssl-keyfile-password-file", str(folder / "password"), "--models-dir", str(tmp_path))
    with serving(*flags) as service:
        assert "ready at https://127.0.0.1:" in service.lines[-1]
        with client_of(authority, service.port) as client:
            check_answers(client)
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"https://127.0.0.1:{service.port}/")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{service.port}/v2/health/live")
        with client_of(authority, service.port) as client:
            check_answers(client)
        assert service.stop() == 0


@pytest.mark.parametrize("auth", ["required", pytest.param("optional", marks=pytest.mark.slow)])
def test_a_client_proves_who_it_is(
    add_classifier: Callable[..., Path], tmp_path: Path, folder: Path, auth: str
) -> None:
    add_classifier()
    authority, clients = Authority(folder, "authority"), Authority(folder, "clients")
    certificate, key = authority.issue("server")
    flags: tuple[str, ...] = (
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        "--models-dir",
        str(tmp_path),
    )
    flags += ("--ssl-ca-certs", str(clients.file), "--ssl-client-auth", auth)
    with serving(*flags) as service:
        with client_of(authority, service.port, clients.issue("client")) as client:
            check_answers(client)
        with (
            client_of(authority, service.port, authority.issue("stranger")) as client,
            pytest.raises(httpx.HTTPError),
        ):
            check_answers(client)
        with client_of(authority, service.port) as client:
            if auth == "optional":
                check_answers(client)
            else:
                with pytest.raises(httpx.HTTPError):
                    check_answers(client)
        assert service.stop() == 0


async def test_only_probes_may_come_without_a_certificate(
    add_classifier: Callable[..., Path], tmp_path: Path, folder: Path
) -> None:
    add_classifier()
    authority, clients = Authority(folder, "authority"), Authority(folder, "clients")
    flags = (*server_flags(authority.issue("server")), "--models-dir", str(tmp_path))
    flags += ("--ssl-ca-certs", str(clients.file), "--ssl-client-auth", "required-except-probes")
    with serving(*flags, "--root-path", "/digits") as service:
        with client_of(authority, service.port, clients.issue("client")) as client:
            check_answers(client)
            assert client.get("/metrics").status_code == 200
        with client_of(authority, service.port) as client:
            for path in ("/v2/health/live", "/v2/health/ready", "/digits/v2/health/live"):
                assert client.get(path).status_code == 200
            for body in (bytes(784), iter([bytes(784)])):
                rejected = client.post("/classify", content=body)
                assert (rejected.status_code, "client certificate is missing" in rejected.text) == (403, True)
            for path in (
                "/",
                "/metrics",
                "/docs",
                "/models",
                "/nothing",
                "/v2/health",
                "/v2/health/../../docs",
            ):
                assert client.get(httpx.URL(path)).status_code == 403, path
            assert client.options("/classify").status_code == 403
        with (
            client_of(authority, service.port, authority.issue("stranger")) as client,
            pytest.raises(httpx.HTTPError),
        ):
            client.get("/v2/health/live")
        assert service.stop() == 0


@pytest.mark.parametrize("tls", [True, False])
def test_the_images_healthcheck_passes(
    add_classifier: Callable[..., Path], tmp_path: Path, folder: Path, tls: bool
) -> None:
    add_classifier()
    certificate, key = Authority(folder, "authority").issue("server")
    flags = server_flags((certificate, key)) if tls else ()
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    command = [sys.executable, *json.loads(check)[1:]]
    with serving(*flags, "--models-dir", str(tmp_path)) as service:
        env = {"INKSERVE_PORT": str(service.port)} | (
            {"INKSERVE_SSL_CERTFILE": str(certificate)} if tls else {}
        )
        assert subprocess.run(command, env=env, timeout=60, check=False).returncode == 0
        assert service.stop() == 0
    ended = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 1


def mount(folder: Path, *files: Path) -> None:
    """Replace a folder's files all at once, as the kubelet does for a Secret."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for file, name in zip(files, ("tls.crt", "tls.key", "ca.crt"), strict=False):
        shutil.copyfile(file, version / name)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "new").symlink_to(version.name)
    (folder / "new").replace(folder / "..data")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"], ids=["one process", "split"])
def test_a_rotated_certificate_is_served_without_a_restart(
    add_classifier: Callable[..., Path], tmp_path: Path, folder: Path, workers: str
) -> None:
    add_classifier()
    old, new = Authority(folder, "old"), Authority(folder, "new")
    mounted = folder / "mounted"
    mounted.mkdir()
    mount(mounted, *old.issue("first"))
    flags = (*server_flags((mounted / "tls.crt", mounted / "tls.key")), "--models-dir", str(tmp_path))
    with serving(*flags, "--workers", workers) as service:
        with client_of(old, service.port) as client:
            check_answers(client)
        mount(mounted, *new.issue("second"))
        until = time.monotonic() + 60
        while True:
            with client_of(new, service.port) as client:
                try:
                    check_answers(client)
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < until
                    time.sleep(0.1)
        with client_of(old, service.port) as client, pytest.raises(httpx.ConnectError):
            client.get("/v2/health/live")
        assert service.stop() == 0


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None
) -> ssl.SSLObject:
    """Connect in memory; returns the client's end. session: to be resumed. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name, session=session),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    for end, data in zip(ends, (b"x", b"y"), strict=True):
        end.write(data)
    assert (ends[0].read(), ends[1].read()) == (
        b"y",
        b"x",
    )  # in TLS 1.3 the client learns of a rejection here
    return ends[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("named", [True, False])
def test_new_connections_use_the_files_that_were_read_last(
    folder: Path, version: ssl.TLSVersion, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    authority, first, second = (Authority(folder, name) for name in ("authority", "first", "second"))
    mounted = folder / "mounted"
    mounted.mkdir()
    mount(mounted, *authority.issue("server"), first.file)
    certificate, key, ca = (mounted / name for name in ("tls.crt", "tls.key", "ca.crt"))
    flags = (*server_flags((certificate, key)), "--ssl-ca-certs", str(ca), "--ssl-client-auth", "required")
    certificates = Certificates(load_settings(flags))

    sessions: dict[Authority, ssl.SSLSession | None] = {}
    contexts = {}
    for clients in (first, second):
        context = contexts[clients] = ssl.create_default_context(cafile=str(authority.file))
        context.minimum_version = context.maximum_version = version
        context.check_hostname = named
        context.load_cert_chain(*clients.issue("client"))

    def connect(clients: Authority) -> str:
        """Connect as a client of an authority, which resumes its last session if it can."""
        name = "127.0.0.1" if named else None
        end = handshake(certificates.context, contexts[clients], name, sessions.get(clients))
        sessions[clients] = end.session
        found = end.getpeercert()
        assert found is not None
        return str(found["subject"]).split("'")[3]  # ((('commonName', NAME),),)

    assert connect(first) == "server"
    with pytest.raises(ssl.SSLError):
        connect(second)
    mount(mounted, *authority.issue("renewed"), second.file)
    certificates.reread()
    assert connect(second) == "renewed"
    with pytest.raises(ssl.SSLError):  # of an authority that is gone
        connect(first)
    mount(mounted, authority.issue("another")[0], authority.issue("yet another")[1], first.file)
    certificates.reread()
    assert connect(second) == "renewed"
    mount(mounted, *authority.issue("server"), first.file)
    certificates.reread()
    with pytest.raises(ssl.SSLError):
        connect(second)
    sessions.clear()
    assert connect(first) == "server"
    assert "the certificates were not reloaded: the certificate" in caplog.text
    assert "expected PEM files that belong together" in caplog.text


def test_bad_files_stop_the_start_with_a_clear_error(tmp_path: Path, folder: Path) -> None:
    authority = Authority(folder, "authority")
    certificate, key = authority.issue("server")
    other, locked = authority.issue("other", PASSWORD)
    (folder / "noise").write_bytes(bytes(range(256)))
    cases = [
        (("--ssl-certfile", str(folder / "nothing")), "ssl_certfile: .*nothing does not exist"),
        (("--ssl-certfile", str(folder)), "ssl_certfile: .* is no regular file"),
        (("--ssl-certfile", str(folder / "noise")), "cannot be used"),
        (
            ("--ssl-certfile", str(other), "--ssl-keyfile", str(key)),
            "expected PEM files that belong together",
        ),
        (("--ssl-certfile", str(other), "--ssl-keyfile", str(locked)), "ssl_keyfile_password_file"),
        (("--ssl-keyfile", str(key)), "ssl_keyfile is set, but ssl_certfile is not"),
        (("--ssl-certfile", str(certificate), "--ssl-client-auth", "required"), "ssl_ca_certs is not set"),
    ]
    for flags, message in cases:
        with pytest.raises(SettingsError, match=message):
            open_tls(load_settings(flags))
    command = [sys.executable, "-m", "service", *cases[4][0], "--models-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "ssl_keyfile_password_file" in ended.stderr
    assert "Traceback" not in ended.stderr
