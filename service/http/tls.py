"""TLS for the HTTP server, by the settings that uvicorn has, with errors that name the setting."""

import logging
import ssl
from pathlib import Path
from typing import NoReturn

from service.errors import SettingsError
from service.http.changing_files import LOOK_SECONDS, follow, stamps
from service.settings import Settings

logger = logging.getLogger(__name__)

EXCEPT_PROBES = "required-except-probes"
"""The kubelet's probes send no certificate: the handshake succeeds without, and HTTP rejects all but them."""

CLIENT_AUTH = {
    "off": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
    EXCEPT_PROBES: ssl.CERT_OPTIONAL,
}


class Certificates:
    """The TLS context of a server, which follows its files: certificates are renewed while it runs.

    context: for the listener; it hands each handshake over to the context that was read last. New files
        loaded into it would keep authorities that are gone, and lose the old key if the new one is bad.
    """

    def __init__(self, settings: Settings) -> None:
        paths = (
            settings.ssl_certfile,
            settings.ssl_keyfile,
            settings.ssl_keyfile_password_file,
            settings.ssl_ca_certs,
        )
        self._settings = settings
        self._paths = [path for path in paths if path is not None]
        self._seen = stamps(self._paths)
        context = open_tls(settings)
        assert context is not None, "TLS is off"
        self.context = self._current = context
        context.sni_callback = self._hand_over  # also called if the client names no server

    def reread(self) -> None:
        """Use the files' current contents for new connections; on the event loop.

        If a file is bad, the log says why and the certificates stay as they are.
        """
        try:
            context = open_tls(self._settings)
        except SettingsError as error:
            logger.error("the certificates were not reloaded: %s", error)
            return
        assert context is not None
        self._current = context
        logger.info("read the certificate %s", self._settings.ssl_certfile)

    async def keep_current(self, every_seconds: float = LOOK_SECONDS) -> NoReturn:
        """Read the files again whenever one has changed, for ever."""
        await follow(self._paths, self._seen, self.reread, every_seconds)

    def _hand_over(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = self._current


def open_certificates(settings: Settings) -> Certificates | None:
    """Return the certificates, or None if HTTP is served without TLS. Raises SettingsError."""
    return None if settings.ssl_certfile is None else Certificates(settings)


def open_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context, or None if HTTP is served without TLS. Raises SettingsError."""
    if settings.ssl_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    password = _read_password(settings.ssl_keyfile_password_file)
    for name, path in (("ssl_certfile", settings.ssl_certfile), ("ssl_keyfile", settings.ssl_keyfile)):
        _check_file(name, path)
    try:
        # Without a password given, OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, lambda: password)
    except (OSError, ValueError) as error:
        key = settings.ssl_keyfile or settings.ssl_certfile
        raise SettingsError(
            f"the certificate {settings.ssl_certfile} with the key {key} cannot be used: {error}; expected "
            "PEM files that belong together, and ssl_keyfile_password_file if the key is encrypted"
        ) from None
    if settings.ssl_ca_certs is not None:
        _check_file("ssl_ca_certs", settings.ssl_ca_certs)
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except OSError as error:
            raise SettingsError(
                f"ssl_ca_certs: {settings.ssl_ca_certs} cannot be used: {error}; expected PEM certificates"
            ) from None
    context.verify_mode = CLIENT_AUTH[settings.ssl_client_auth]
    if settings.ssl_ca_certs is not None:
        # A resumed session is not verified again, and would outlive the removal of its authority by hours.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def scheme(settings: Settings) -> str:
    """Return the scheme of the service's URLs."""
    return "http" if settings.ssl_certfile is None else "https"


def _check_file(name: str, path: Path | None) -> None:
    """Raise SettingsError unless a file can be read; OpenSSL's errors name no file, and a FIFO blocks it."""
    if path is None:
        return
    try:
        if not path.is_file():
            seen = "is no regular file" if path.exists() else "does not exist"
            raise SettingsError(f"{name}: {path} {seen}, expected a PEM file")
        with path.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None


def _read_password(path: Path | None) -> str:
    _check_file("ssl_keyfile_password_file", path)
    if path is None:
        return ""
    try:
        return path.read_text("utf-8-sig").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"ssl_keyfile_password_file: {path} cannot be read, expected UTF-8") from None
