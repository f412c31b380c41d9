"""Paths with parameters, such as `/models/{name}`."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

_PARAMETER = re.compile(r"{(\w+)}")


class Family:
    """Paths that differ only in their parameters.

    route: what requests to them are counted under. templates: as in FastAPI.
    """

    def __init__(self, route: str, templates: Iterable[str]) -> None:
        self.route = route
        self._patterns = [re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", each)) for each in templates]

    def parameters(self, path: str) -> Mapping[str, str] | None:
        """Return the path's parameters, or None if it is none of these."""
        for pattern in self._patterns:
            if (match := pattern.fullmatch(path)) is not None:
                return match.groupdict()
        return None


def find(families: Mapping[Family, T], path: str) -> tuple[str, T, Mapping[str, str]] | None:
    """Return the route of a path, its family's value and its parameters; None if it is in no family."""
    for family, value in families.items():
        if (parameters := family.parameters(path)) is not None:
            return family.route, value, parameters
    return None
