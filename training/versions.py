"""Versions in the models folder: read and verified, or published whole by one rename."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.models.folder import version_folders
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest, sha256_of
from service.models.verification import external_digests, model_files
from training.cost import MULTIPLY_ADDS, multiply_adds
from training.errors import EvaluationError, ExportError
from training.files import sync, write_atomically
from training.terminal import notice


def read_verified(folder: Path) -> Manifest:
    """The manifest of a version whose files have the SHA-256 that it names."""
    manifest = read_manifest(folder)
    for name, expected in model_files(manifest).items():
        digest = sha256_of(folder / name)
        if digest != expected:
            raise EvaluationError(
                f"{folder / name}: SHA-256 is {digest}, expected {expected} ({MANIFEST_FILE})"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a version's manifest.json, whole or not at all, without the fields that are not set."""
    text = manifest.model_dump_json(indent=2, exclude_none=True) + "\n"
    write_atomically(folder / MANIFEST_FILE, text.encode())


def read_source(path: Path, source: Path) -> Manifest:
    """The manifest of the version that a graph was made from. Raises EvaluationError if it is missing."""
    if not (source / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{source}, from which {path} was made, is missing")
    return read_verified(source)


@dataclass(frozen=True)
class Target:
    """Where to publish, and what: models_dir/<name>/<version>.

    version: None means the next free one. force: replace the version if it exists, and publish one that is
    much worse than the last. weights: put the run's weights next to the graph, for further training.
    """

    models_dir: Path
    version: int | None = None
    force: bool = False
    weights: bool = False

    def keeps_default(self, name: str) -> bool:
        """Whether the model's latest version is the default of its task, as the next one then is too."""
        versions = version_folders(self.models_dir / name, holding=MANIFEST_FILE)
        return bool(versions) and read_manifest(versions[max(versions)]).default


@contextlib.contextmanager
def staging(names: Sequence[str], target: Target) -> Iterator[list[Path]]:
    """Empty folders, one for each name, laid out like models_dir; what they then hold is published.

    Once the block has ended, they appear in the given order, each by one rename; if it raises, none does.
    Raises ExportError if the version exists.
    """
    version = _version(names, target)
    target.models_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.models_dir) as temporary:
        staged = [Path(temporary) / name / version for name in names]
        for folder in staged:
            folder.mkdir(parents=True, mode=0o755)
        yield staged
        for name, folder in zip(names, staged, strict=True):
            place = target.models_dir / name / version
            _move_into_place(folder, place, target.force)
            notice(f"published {place}")


def completed(draft: Manifest, folder: Path, metrics: Mapping[str, float | int | str]) -> Manifest:
    """Return a draft with the checksums of the files that lie in its folder, and with what was measured.

    Its graph's cost is added to the metrics. Raises EvaluationError.
    """
    cost = {MULTIPLY_ADDS: multiply_adds(folder / MODEL_FILE)}
    return draft.model_copy(
        update={
            "sha256": sha256_of(folder / MODEL_FILE),
            "files": external_digests(folder),
            "metrics": {**metrics, **cost, **draft.metrics},
        }
    )


def _version(names: Sequence[str], target: Target) -> str:
    """The requested version, or the next one that is free for all the names."""
    parents = [target.models_dir / name for name in names]
    taken = [version for parent in parents for version in version_folders(parent)]
    version = target.version or max(taken, default=0) + 1
    existing = [parent / str(version) for parent in parents if version in version_folders(parent)]
    if existing and not target.force:
        raise ExportError(f"{existing[0]} exists: give another --version, or --force")
    return str(version)


def _move_into_place(staged: Path, folder: Path, force: bool) -> None:
    """Make the version appear by one rename, after its bytes are on the disk.

    A version that is replaced is moved aside first; between the two renames there is none.
    """
    for path in [*staged.iterdir(), staged]:
        sync(path)
    folder.parent.mkdir(exist_ok=True)
    if force and folder.exists():
        folder.rename(staged.with_name("replaced"))
    try:
        staged.rename(folder)
    except OSError as error:
        raise ExportError(f"{folder} could not be created: {error}") from error
    sync(folder.parent)
