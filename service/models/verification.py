"""Verifies a version's files against its manifest: the graph, and the files that the graph names."""

import os
from pathlib import Path

from service.errors import RepositoryError
from service.models.graph_files import external_files
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, is_inside, sha256_of

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, size, modification time and inode of each of a version's files."""


def model_files(manifest: Manifest) -> dict[str, str]:
    """Return the expected SHA-256 of each file that onnxruntime reads, by its path in the folder."""
    return {MODEL_FILE: manifest.sha256, **manifest.files}


def stamp(folder: Path, manifest: Manifest) -> Stamp:
    """Return what changes when a file of a version is written or replaced. Raises RepositoryError."""
    stamps = []
    for name in model_files(manifest):
        path = _regular(folder / name)
        status = path.stat()
        stamps.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(stamps)


def verify(folder: Path, manifest: Manifest) -> None:
    """Check that every file is what the manifest says, and that the graph reads no other. Blocks.

    Raises RepositoryError.
    """
    for name, expected in model_files(manifest).items():
        path = _regular(folder / name)
        digest = sha256_of(path)
        if digest != expected:
            raise RepositoryError(f"{path} has sha256 {digest}, its manifest expects {expected}")
    for location in sorted(external_files(folder / MODEL_FILE)):
        _check_location(folder, location, manifest)


def external_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that the graph in a folder names: a manifest's `files`.

    Raises RepositoryError if a file is missing, or lies outside the folder.
    """
    digests = {}
    for location in sorted(external_files(folder / MODEL_FILE)):
        name = _inside(folder, location)
        digests[name] = sha256_of(_regular(folder / name))
    return digests


def _check_location(folder: Path, location: str, manifest: Manifest) -> None:
    name = _inside(folder, location)
    if name not in manifest.files:
        raise RepositoryError(
            f"{folder / MODEL_FILE} reads the file {name!r}, expected its SHA-256 in {MANIFEST_FILE}: "
            f'"files": {{"{name}": "..."}}'
        )


def _inside(folder: Path, location: str) -> str:
    name = os.path.normpath(location)
    if not location or not is_inside(name):
        raise RepositoryError(
            f"{folder / MODEL_FILE} reads the file {location!r}, expected a file in the version's folder"
        )
    return name


def _regular(path: Path) -> Path:
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error.strerror or error}") from error
    raise RepositoryError(f"{path} is not a regular file" if path.exists() else f"{path} is missing")
