"""TLS for the gRPC server: the certificates of `service.http.tls`, and its rules as far as gRPC has them."""

import logging
from pathlib import Path

import grpc

from service.errors import SettingsError
from service.http.changing_files import stamps
from service.http.tls import open_tls
from service.settings import Settings

logger = logging.getLogger(__name__)

REQUIRES_CERTIFICATE = ("required", "required-except-probes")
"""grpcio asks every client for a certificate, or none. Kubernetes' gRPC probes know no TLS anyway. With
`optional` clients are not asked: nothing depends on a certificate that they need not send."""


class RpcCertificates:
    """The credentials of a server, which follow their files: each handshake looks for changes."""

    def __init__(self, settings: Settings) -> None:
        paths = (settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_ca_certs)
        self._settings = settings
        self._paths = [path for path in paths if path is not None]
        self._seen = stamps(self._paths)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._read(), self._changed, settings.ssl_client_auth in REQUIRES_CERTIFICATE
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files. Raises SettingsError as HTTP does: gRPC's own errors name no file."""
        settings = self._settings
        open_tls(settings)
        assert settings.ssl_certfile is not None, "TLS is off"
        chain = _content("ssl_certfile", settings.ssl_certfile)
        key = chain if settings.ssl_keyfile is None else _content("ssl_keyfile", settings.ssl_keyfile)
        authorities = settings.ssl_ca_certs and _content("ssl_ca_certs", settings.ssl_ca_certs)
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the files' new contents, or None; gRPC calls this at each handshake, on a thread of its own.

        If a file is bad, the log says why and the certificates stay as they are.
        """
        now = stamps(self._paths)
        if now == self._seen:
            return None
        self._seen = now
        try:
            return self._read()
        except SettingsError as error:
            logger.error("the certificates of gRPC were not reloaded: %s", error)
            return None


def open_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return the credentials, or None if the service has no TLS. Raises SettingsError."""
    return None if settings.ssl_certfile is None else RpcCertificates(settings).credentials


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None
