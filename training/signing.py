"""Signs a version folder with a private key, so that a service with --trusted-keys serves it."""

import os
import tempfile
from pathlib import Path

from service.models.folder import read_info
from service.models.manifest import MODEL_FILE, sha256_of
from service.models.signatures import SIGNATURE_FILE
from training.errors import SigningError


def sign(folder: Path, key: Path) -> Path:
    """Sign every file of a version folder; returns the signature's path. An older signature is replaced.

    key: an elliptic-curve private key in PEM (P-256, P-384 or P-521), without a password.
    Raises ManifestError or SigningError if the folder is no whole version or the key cannot be used.
    """
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise SigningError(f"signing needs the extra `signing`: {error}") from error
    folder = folder.resolve()  # its name and its parent's must be the version's and the model's
    expected = read_info(folder).manifest.sha256
    if not (folder / MODEL_FILE).is_file() or sha256_of(folder / MODEL_FILE) != expected:
        raise SigningError(f"{folder / MODEL_FILE} is missing or differs from its manifest's sha256")
    hashed = hashing.Config()  # type: ignore[no-untyped-call]
    hashed.set_ignored_paths(paths=[folder / SIGNATURE_FILE], ignore_git_paths=True)
    config = signing.Config().set_hashing_config(hashed)  # type: ignore[no-untyped-call]
    try:
        config.use_elliptic_key_signer(private_key=key)
    except OSError as error:
        raise SigningError(f"private key {key} cannot be read: {error}") from error
    except Exception as error:  # cryptography's types for a wrong format, kind or curve, or a password
        raise SigningError(
            f"private key {key} cannot be used: {error}; expected an elliptic-curve key in PEM, no password"
        ) from error
    with tempfile.TemporaryDirectory(prefix=".sign-", dir=folder.parent) as private:
        signature = Path(private) / SIGNATURE_FILE
        try:
            config.sign(folder, signature)
        except (OSError, ValueError) as error:
            raise SigningError(f"{folder} cannot be signed: {error}") from error
        os.replace(signature, folder / SIGNATURE_FILE)  # noqa: PTH105
    return folder / SIGNATURE_FILE
