"""Recognises the environment variables that Kubernetes sets in every pod for each Service.

A Service named `inkserve` gives a pod INKSERVE_SERVICE_HOST, INKSERVE_PORT=tcp://10.0.0.1:8000 and more, and
one named `inkserve-x` gives INKSERVE_X_SERVICE_HOST: names that look like settings. A variable counts as a
service link only if both its name and its value have the shape that Kubernetes gives them.
"""

import ipaddress
import re
from collections.abc import Callable

_URL = re.compile(r"(?:tcp|udp|sctp)://.+:[0-9]{1,5}", re.IGNORECASE)
_PROTOCOL = re.compile(r"tcp|udp|sctp", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes sets an environment variable of this name to such a value for some Service."""
    return any(shape.search(name) and fits(value) for shape, fits in _LINKS)


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value.strip("[]"))
    except ValueError:
        return False
    return True


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda value: pattern.fullmatch(value) is not None


_LINKS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"_SERVICE_HOST$"), _is_address),
    (re.compile(r"_SERVICE_PORT(_[A-Z0-9_]+)?$"), _matches(_PORT)),
    (re.compile(r"_PORT$"), _matches(_URL)),
    (re.compile(r"_PORT_[0-9]+_(TCP|UDP|SCTP)$"), _matches(_URL)),
    (re.compile(r"_PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO$"), _matches(_PROTOCOL)),
    (re.compile(r"_PORT_[0-9]+_(TCP|UDP|SCTP)_PORT$"), _matches(_PORT)),
    (re.compile(r"_PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR$"), _is_address),
)
