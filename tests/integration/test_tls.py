"""HTTP over TLS and mutual TLS, with certificates made on the spot."""

import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from service.errors import SettingsError
from service.http.tls import open_tls
from service.settings import load_settings
from tests.support.live import ROOT, serving

PASSWORD = "a password of the test"
NOW = datetime.now(UTC)


class Authority:
    """Signs certificates for 127.0.0.1 and writes them into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, password: str | None = None) -> tuple[Path, Path]:
        """Return the files of a certificate and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), authority=False)
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return files

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, authority: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


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
