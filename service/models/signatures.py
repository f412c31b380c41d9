"""Verifies that a model version is signed by a trusted key: OpenSSF's model-signing, with keys, offline.

A signature covers the name and the digest of every file of a version folder. Needs the extra `signing`.
"""

import base64
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.errors import EngineError, RepositoryError, SettingsError
from service.models.manifest import sha256_of

SIGNATURE_FILE = "model.sig"
"""The signature's name in a version folder: a Sigstore bundle, as `model_signing sign key` writes it."""

MAX_SIGNATURE_BYTES = 1 << 20
CURVES = ("secp256r1", "secp384r1", "secp521r1")
GIT_FILES = (".git", ".gitattributes", ".github", ".gitignore")
"""model-signing never signs these at the top of a folder, so they are never copied either."""

Keys = Mapping[str, Path]
"""The files of the trusted public keys by key id: the SHA-256 of the key in PEM, as signatures name it."""


@contextmanager
def verified(folder: Path, trusted_keys: Path | None) -> Iterator[Path]:
    """Yield the folder to open instead of a version folder; the folder itself without `trusted_keys`.

    Otherwise it is a private copy, which is removed afterwards. The copy is verified and the copy is opened,
    so a file that is replaced in between has no effect. Errors raised in the block name the version folder.
    Raises RepositoryError unless a trusted key has signed exactly these files, and SettingsError.
    """
    if trusted_keys is None:
        yield folder
        return
    keys = read_trusted_keys(trusted_keys)
    with _private_folder() as private:
        # The last two parts of the path must be the model's name and version.
        copy = private / folder.parent.name / folder.name
        try:
            _copy_version(folder, copy, private / SIGNATURE_FILE)
            _verify(copy, private / SIGNATURE_FILE, keys)
            yield copy
        except (RepositoryError, EngineError) as error:
            raise type(error)(str(error).replace(str(copy), str(folder))) from error


def read_trusted_keys(path: Path) -> Keys:
    """Read the public keys of a file, or of each file in a folder; names starting with "." are skipped.

    Raises SettingsError if the extra is missing, or if a file is not one elliptic-curve public key in PEM.
    """
    try:
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"trusted_keys is {path}, but the extra `signing` is missing: {error}") from error
    try:
        files = [path]
        if path.is_dir():
            files = sorted(each for each in path.iterdir() if each.name[0] != ".")
        keys = {_key_id(file): file for file in files}
    except (OSError, RepositoryError) as error:
        raise SettingsError(f"trusted_keys is {path}, which cannot be read: {error}") from error
    if not keys:
        raise SettingsError(f"trusted_keys is {path}, an empty folder, expected public keys in PEM")
    return keys


def _key_id(file: Path) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    content = _read(file, MAX_SIGNATURE_BYTES)
    expected = f"expected one public key in PEM, on one of the curves {', '.join(CURVES)}"
    if content.count(b"-----BEGIN") > 1:
        raise SettingsError(f"trusted key {file} holds several PEM blocks, {expected}")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"trusted key {file} is not a public key, {expected}") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        kind = key.curve.name if isinstance(key, EllipticCurvePublicKey) else type(key).__name__
        raise SettingsError(f"trusted key {file} is {kind}, {expected}")
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@contextmanager
def _private_folder() -> Iterator[Path]:
    try:
        private = tempfile.TemporaryDirectory(prefix="inkserve-")
    except OSError as error:
        raise RepositoryError(
            f"no temporary folder is writable, expected room for a copy of each signed version: {error}"
        ) from error
    with private as path:
        yield Path(path)


def _copy_version(folder: Path, copy: Path, signature: Path) -> None:
    """Copy a version's files to `copy`, and its signature to `signature`. Raises RepositoryError."""
    try:
        _copy_files(folder, copy, signature)
    except OSError as error:
        raise RepositoryError(f"{folder} cannot be copied to verify its signature: {error}") from error


def _copy_files(folder: Path, copy: Path, signature: Path) -> None:
    if not (folder / SIGNATURE_FILE).is_file():
        raise RepositoryError(f"{folder} is not signed: {SIGNATURE_FILE} is missing, and trusted_keys is set")
    signature.write_bytes(_read(folder / SIGNATURE_FILE, MAX_SIGNATURE_BYTES))
    copy.mkdir(parents=True)
    for place, subfolders, names in os.walk(folder, onerror=_raise):
        inside = Path(place).relative_to(folder)
        if Path(place) == folder:
            subfolders[:] = [name for name in subfolders if name not in GIT_FILES]
            names = [name for name in names if name not in (SIGNATURE_FILE, *GIT_FILES)]
        for name in subfolders:
            if (Path(place) / name).is_symlink():  # it may lead out of the folder, or in a circle
                raise RepositoryError(f"{Path(place) / name} is a link, expected a folder")
            (copy / inside / name).mkdir()
        for name in names:
            with _open(Path(place) / name) as source, (copy / inside / name).open("xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _raise(error: OSError) -> None:
    raise error


def _open(file: Path) -> Any:
    """Open a regular file, or a link to one; a FIFO or a device would block or never end."""
    opened = open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise RepositoryError(f"{file} is not a regular file")
    return opened


def _read(file: Path, longest: int) -> bytes:
    with _open(file) as opened:
        content: bytes = opened.read(longest + 1)
    if len(content) > longest:
        raise RepositoryError(f"{file} is larger than {longest} bytes")
    return content


def _verify(copy: Path, signature: Path, keys: Keys) -> None:
    """Compare every file of the copy with its signature. Raises RepositoryError."""
    from model_signing.verifying import Config

    key_id, signed = _contents(copy, signature)
    if key_id not in keys:
        known = ", ".join(each[:16] for each in sorted(keys))
        raise RepositoryError(f"{copy} is signed by key {key_id[:16]!r}, expected one of {known}")
    config = Config()  # type: ignore[no-untyped-call]  # a new one: it keeps what it reads from a signature
    found = {str(path.relative_to(copy)): path for path in copy.rglob("*") if path.is_file()}
    try:
        config.use_elliptic_key_verifier(public_key=keys[key_id]).verify(copy, signature)
    except Exception as error:  # cryptography's, pydantic's and the library's own types
        names = sorted(found.keys() | signed.keys())
        changed = [name for name in names if name not in found or sha256_of(found[name]) != signed.get(name)]
        reason = f"{changed} are changed, missing or not signed" if changed else str(error) or "it is invalid"
        raise RepositoryError(f"{copy} does not match its signature: {reason}") from error
    # A signature may also name paths that its verifier ignores.
    if found.keys() != signed.keys():
        raise RepositoryError(
            f"{copy} holds {sorted(found.keys() - signed.keys())}, which its signature does not cover"
        )


def _contents(copy: Path, signature: Path) -> tuple[str, dict[str, str]]:
    """Return a signature's key id, and its files' digests by name; true only once it is verified."""
    try:
        bundle = json.loads(signature.read_bytes())
        key_id = bundle["verificationMaterial"]["publicKey"]["hint"]
        predicate = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["predicate"]
        digests = {str(each["name"]): str(each["digest"]) for each in predicate["resources"]}
        method = predicate["serialization"]["method"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RepositoryError(
            f"{copy}/{SIGNATURE_FILE} is not a signature by a key: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(key_id, str) or method != "files":
        raise RepositoryError(
            f"{copy}/{SIGNATURE_FILE} signs {method!r} with the key {key_id!r}, expected 'files' and a key id"
        )
    return key_id, digests
