"""The catalogue of the model versions that are served."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from service.errors import InkserveError, ModelNotFound
from service.models.manifest import VARIANTS, Manifest, Task


@dataclass(frozen=True)
class ModelInfo:
    """A model version that is being served.

    card: its README.md, Markdown, or empty. batch_sizes: that it runs in, ascending; a batch is padded to the
    next one. slow_batch_sizes: that are not used, because a row takes longer in them than in a smaller batch.
    differing_batch_sizes: that are not used, because a row has other bits in them than in the fixed size.
    """

    manifest: Manifest
    card: str
    batch_sizes: tuple[int, ...] = field(default=(), compare=False)
    slow_batch_sizes: tuple[int, ...] = field(default=(), compare=False)
    differing_batch_sizes: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Failure:
    """A model version, or a whole model, that cannot be served, and why. version: None for a whole model."""

    name: str
    version: int | None
    reason: str

    @classmethod
    def of(cls, name: str, version: int | None, error: Exception | str) -> "Failure":
        """Make a failure that any encoding can carry: names of files need not be valid Unicode."""
        expected = isinstance(error, (str, InkserveError))
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        return cls(_printable(name), version, _printable(reason))


_WITH_VARIANTS: tuple[Task, ...] = ("classification", "generation")


class Catalogue:
    """The model versions that are served at one moment, and those that cannot be; immutable."""

    def __init__(self, models: Iterable[ModelInfo], failures: Iterable[Failure] = ()) -> None:
        self.failures = tuple(failures)
        self._versions: dict[str, dict[int, ModelInfo]] = {}
        for info in sorted(models, key=lambda info: (info.manifest.name, info.manifest.version)):
            self._versions.setdefault(info.manifest.name, {})[info.manifest.version] = info
        self._latest = {name: versions[max(versions)] for name, versions in self._versions.items()}
        self._defaults: dict[Task, ModelInfo] = {}
        for info in sorted(self._latest.values(), key=lambda info: not info.manifest.default):  # it is stable
            self._defaults.setdefault(info.manifest.task, info)
        self._preferred: dict[tuple[str, Sequence[str]], Manifest] = {}

    def __iter__(self) -> Iterator[ModelInfo]:
        return (info for versions in self._versions.values() for info in versions.values())

    def find(self, name: str, version: int | None = None) -> ModelInfo:
        """Return a version of a model, or its latest. Raises ModelNotFound."""
        info = self._latest.get(name) if version is None else self._versions.get(name, {}).get(version)
        if info is not None:
            return info
        if name not in self._versions:
            raise ModelNotFound(f"model {name!r} is unknown, expected one of {', '.join(self._versions)}")
        versions = ", ".join(str(known) for known in self._versions[name])
        raise ModelNotFound(f"model {name!r} has no version {version}, expected one of {versions}")

    def latest(self) -> Iterator[ModelInfo]:
        """Return the latest version of every model, by name."""
        return iter(self._latest.values())

    def preferred(self, name: str, kinds: tuple[str, ...]) -> Manifest:
        """Return the latest version of a classifier or generator, or the first variant of it that is served.

        kinds: keys of VARIANTS, the best first. A variant has its model's version, task, tensors and labels;
        what only has the name of one is passed over. Other tasks have none. Raises ModelNotFound.
        """
        known = self._preferred.get((name, kinds))
        if known is None:
            known = self._preferred[name, kinds] = self._find_preferred(name, kinds)
        return known

    def _find_preferred(self, name: str, kinds: tuple[str, ...]) -> Manifest:
        manifest = self.find(name).manifest
        for kind in kinds if manifest.task in _WITH_VARIANTS else ():
            variant = self._latest.get(name + VARIANTS[kind])
            if variant is not None and _same_but_for_bits(variant.manifest, manifest):
                return variant.manifest
        return manifest

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, ascending. Raises ModelNotFound."""
        self.find(name)
        return list(self._versions[name])

    def default(self, task: Task) -> ModelInfo:
        """Return the latest version of a task's default model. Raises ModelNotFound.

        That is the first by name of those whose manifest says `default`, or of all.
        """
        found = self._defaults.get(task)
        if found is None:
            raise ModelNotFound(f"no model for {task} is loaded")
        return found


def _same_but_for_bits(one: Manifest, other: Manifest) -> bool:
    """Whether two models take and give the same, so that one may answer for the other."""
    fields = ("version", "task", "inputs", "outputs", "labels", "picture_preprocess")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
