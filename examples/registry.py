"""Push a model version to an OCI registry as an artifact, or pull it, as `oras push` and `oras pull` do.

Each file of the version is a layer, titled by its name. oras-py compares no digests when it pulls: this does,
and the folder appears whole or not at all.

    python examples/registry.py push models/cnn/1 127.0.0.1:5000/models/cnn:1 --plain-http
    python examples/registry.py pull 127.0.0.1:5000/models/cnn:1 served/cnn/1 --plain-http
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from oras.client import OrasClient

TITLE = "org.opencontainers.image.title"


def push(folder: Path, reference: str, client: OrasClient) -> None:
    """Push every file of a version folder; it has no subfolders."""
    files = sorted(str(path) for path in folder.iterdir())
    client.push(reference, files=files, disable_path_validation=True, quiet=True)


def pull(reference: str, folder: Path, client: OrasClient) -> None:
    """Pull an artifact into a folder that does not exist. Raises ValueError if a file has not its digest."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    layers = client.get_manifest(client.get_container(reference))["layers"]
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder.parent) as temporary:
        pulled = Path(temporary) / folder.name
        client.pull(reference, outdir=str(pulled))
        for layer in layers:
            path = pulled / layer["annotations"][TITLE]
            digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
            if digest != layer["digest"]:
                raise ValueError(f"{path.name} has digest {digest}, expected {layer['digest']}")
        pulled.rename(folder)


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["push", "pull"])
    parser.add_argument("source", help="version folder, or reference")
    parser.add_argument("target", help="reference, or version folder")
    parser.add_argument("--plain-http", action="store_true", help="for a registry without TLS")
    options = parser.parse_args(arguments)
    client = OrasClient(insecure=options.plain_http)
    if options.action == "push":
        push(Path(options.source), options.target, client)
    else:
        pull(options.source, Path(options.target), client)


if __name__ == "__main__":
    main(sys.argv[1:])
