#!/usr/bin/env python3
"""Package the chart with its bill of materials, and push it to an OCI registry, without the helm program.

REGISTRY_USER and REGISTRY_PASSWORD log in, if the registry requires it and Helm has no credentials yet. The
bill of materials (CycloneDX 1.6) has the archive's SHA-256 and the images that the chart's defaults name.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import helm_python
import yaml
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from packageurl import PackageURL
from sbom import document

CHART = Path(__file__).parents[1] / "helm"


def main(arguments: list[str]) -> int:
    """Package the chart into a folder, and push it if the command line names a registry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the archive and its bill of materials are written")
    parser.add_argument("--push", metavar="REGISTRY", help="such as registry.example.com/charts")
    parser.add_argument("--plain-http", action="store_true", help="for a registry without TLS")
    parser.add_argument("--home", metavar="URL", help="the project's page, for the packaged Chart.yaml")
    parser.add_argument(
        "--source", metavar="URL", help="the project's repository, for the packaged Chart.yaml"
    )
    options = parser.parse_args(arguments)
    archive = package(options.folder, options.home, options.source)
    materials = archive.with_suffix(".cdx.json")
    materials.write_text(bill(archive))
    print(archive, materials, sep="\n")
    if options.push:
        print(push(archive, options.push.removeprefix("oci://"), options.plain_http))
    return 0


def package(folder: Path, home: str | None, source: str | None) -> Path:
    """Package the chart into a folder; returns the archive.

    home, source: the addresses of whoever publishes it, which the chart in the repository cannot know.
    """
    with tempfile.TemporaryDirectory() as parent:
        chart = Path(shutil.copytree(CHART, Path(parent) / "inkserve"))
        addresses = ({"home": home} if home else {}) | ({"sources": [source]} if source else {})
        if addresses:
            with (chart / "Chart.yaml").open("a") as metadata:
                metadata.write(yaml.safe_dump(addresses))
        return Path(helm_python.package(chart, destination=folder))


def bill(archive: Path) -> str:
    """Return the bill of materials of a packaged chart."""
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    chart = Component(
        type=ComponentType.APPLICATION,
        name=f"{metadata['name']}-chart",
        version=metadata["version"],
        bom_ref="chart",
        description=metadata["description"],
        licenses=[LicenseFactory().make_from_string(metadata["annotations"]["artifacthub.io/license"])],
        hashes=[
            HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(archive.read_bytes()).hexdigest())
        ],
    )
    images = [container(reference) for reference in image_references(metadata["appVersion"])]
    bom = Bom(components=images)
    bom.metadata.component = chart
    bom.register_dependency(chart, images)
    return document(bom)


def image_references(version: str) -> list[str]:
    """Return the images of the default values. version: the chart's appVersion."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return [f"{values['image']['repository']}:{version}", str(values["models"]["objectStore"]["image"])]


def container(reference: str) -> Component:
    """Describe a container image by its name and tag."""
    path, _, tag = reference.rpartition(":")
    namespace, _, name = path.rpartition("/")
    purl = PackageURL("docker", namespace or None, name, tag)
    return Component(type=ComponentType.CONTAINER, name=path, version=tag, purl=purl, bom_ref=str(purl))


def push(archive: Path, registry: str, plain_http: bool) -> str:
    """Push a packaged chart and return its reference by digest, which is what cosign signs."""
    name, version = archive.name.removesuffix(".tgz").split("-", 1)
    with helm_python.RegistryClient(plain_http=plain_http) as client:
        if "REGISTRY_USER" in os.environ:
            user, password = os.environ["REGISTRY_USER"], os.environ["REGISTRY_PASSWORD"]
            client.login(registry.partition("/")[0], user, password, plain_http=plain_http)
        client.push(archive, f"oci://{registry}", plain_http=plain_http)
        found = client.resolve(f"oci://{registry}/{name}:{version}")
    return f"{registry}/{name}@{found['digest']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
