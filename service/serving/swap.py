"""Where a model is swapped: one set of versions is served until another replaces it, all at once."""

import logging
from collections.abc import Iterable, Iterator

from service.models.catalogue import Catalogue, Failure
from service.models.folder import Key
from service.serving.loaded_model import LoadedModel

logger = logging.getLogger(__name__)


class Served:
    """The model versions that are served now. Lives on the event loop.

    by_request: by name and version, and by name and None for the latest version.
    catalogue: the versions' manifests and cards; a new object after each swap.
    """

    def __init__(self) -> None:
        self.by_request: dict[tuple[str, int | None], LoadedModel] = {}
        self.catalogue = Catalogue([])
        self._models: dict[Key, LoadedModel] = {}

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())

    def all_keys(self) -> set[Key]:
        """Return the name and version of all that is served."""
        return set(self._models)

    def get(self, key: Key) -> LoadedModel | None:
        """Return the version that is served under this name and number, or None."""
        return self._models.get(key)

    def find(self, name: str, version: int | None) -> LoadedModel:
        """Return a version of a model, or its latest. Raises ModelNotFound."""
        return self._models[name, self.catalogue.find(name, version).manifest.version]

    def versions(self, name: str) -> list[LoadedModel]:
        """Return the versions of a model that are served."""
        return [loaded for key, loaded in self._models.items() if key[0] == name]

    def swap(self, models: Iterable[LoadedModel], failures: Iterable[Failure] = ()) -> list[LoadedModel]:
        """Serve exactly these from now on; returns those that were served before and no longer are.

        failures: what the catalogue reports as not served.
        """
        before = self._models
        self._models = {(m.info.manifest.name, m.info.manifest.version): m for m in models}
        self.catalogue = Catalogue((loaded.info for loaded in self), failures)
        self.by_request = dict(self._models.items())
        for name in {key[0] for key in self._models}:
            self.by_request[name, None] = self.find(name, None)
        return [loaded for key, loaded in before.items() if self._models.get(key) is not loaded]


def log_changes(before: Iterable[LoadedModel], now: Iterable[LoadedModel]) -> None:
    """Log what a swap changed, even if nothing changed: whoever sent SIGHUP looks for a line."""
    old, new = list(before), list(now)
    loaded = [_name(each) for each in new if each not in old]
    names = {_name(each) for each in new}
    unloaded = [_name(each) for each in old if _name(each) not in names]
    if not loaded and not unloaded:
        logger.info("reloaded: nothing has changed, %d model versions are served", len(new))
        return
    logger.info(
        "reloaded: %s loaded, %s unloaded, %d model versions are served",
        ", ".join(loaded) or "none",
        ", ".join(unloaded) or "none",
        len(new),
    )


def _name(loaded: LoadedModel) -> str:
    return f"{loaded.info.manifest.name}/{loaded.info.manifest.version}"
