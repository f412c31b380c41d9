#!/usr/bin/env python3
"""Write the SBOM of installed packages and of models, as CycloneDX 1.6 in JSON.

The root is the package inkserve. A package's hash is that of the archive that pip installed, from pip's
report. The same packages give the same bytes: the serial number follows from the content, and there is no
timestamp.
"""

import argparse
import hashlib
import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = canonicalize_name("inkserve")
INDEX = "https://pypi.org/project"


def main(arguments: list[str]) -> int:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", nargs="+", type=Path, help="folders of packages, such as site-packages")
    parser.add_argument(
        "--report", action="append", type=Path, default=[], help="what pip install --report wrote"
    )
    parser.add_argument("--models", type=Path, help="a models folder")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    hashes = dict(entry for report in options.report for entry in archive_hashes(report))
    models = sorted(options.models.glob("*/*/*.onnx*")) if options.models else []
    options.output.write_text(sbom(options.packages, hashes, models))
    return 0


def archive_hashes(report: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each package that pip installed, and the SHA-256 of its archive if it is known."""
    for item in json.loads(report.read_text())["install"]:
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" in hashes:
            yield canonicalize_name(item["metadata"]["name"]), hashes["sha256"]


def sbom(packages: Iterable[Path], hashes: dict[str, str], models: Iterable[Path]) -> str:
    """Return the document. hashes: the SHA-256 of each archive, by the package's name.

    Raises SystemExit if inkserve is not among the packages.
    """
    found = {
        canonicalize_name(each.name): each
        for each in distributions(path=[str(folder) for folder in packages])
    }
    if ROOT not in found:
        raise SystemExit(f"{ROOT} is not among the {len(found)} packages, expected it as the root")
    components = {name: component(found[name], hashes.get(name)) for name in sorted(found)}
    components[ROOT].type = ComponentType.APPLICATION
    weights = [model(path) for path in models]
    bom = Bom(components=[*(each for name, each in components.items() if name != ROOT), *weights])
    bom.metadata.component = components[ROOT]
    for name, distribution in found.items():
        needed = [components[each] for each in requirements(distribution) if each in components]
        bom.register_dependency(components[name], needed)
    bom.register_dependency(components[ROOT], weights)
    return document(bom)


def requirements(distribution: Distribution) -> set[NormalizedName]:
    """Return the names of the packages that a package requires here, with any of its extras."""
    extras = ["", *(distribution.metadata.get_all("Provides-Extra") or [])]
    parsed = [Requirement(line) for line in distribution.requires or []]
    return {
        canonicalize_name(each.name)
        for each in parsed
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    }


def component(distribution: Distribution, sha256: str | None) -> Component:
    """Describe an installed package."""
    name, version = canonicalize_name(distribution.name), distribution.version
    purl = PackageURL("pypi", None, name, version)
    stated = field(distribution, "License-Expression") or field(distribution, "License")
    archive = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(f"{INDEX}/{name}/{version}/#files"),
        comment="the archive that pip installed",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
    )
    return Component(
        name=name,
        version=version,
        bom_ref=str(purl),
        purl=purl,
        description=field(distribution, "Summary") or None,
        licenses=licenses(stated),
        external_references=[archive] if sha256 else [],
    )


def field(distribution: Distribution, name: str) -> str:
    """Return a field of a package's metadata, or an empty text."""
    return str((distribution.metadata.get_all(name) or [""])[0])


def licenses(stated: str) -> list[License]:
    """Return the licence that a package states; none for a whole text, which old packages put there."""
    return [LicenseFactory().make_from_string(stated)] if stated and "\n" not in stated else []


def model(path: Path) -> Component:
    """Describe a file of a model version, by its path <model>/<version>/<file>."""
    name, version, file = path.parts[-3:]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        group="models",
        name=f"{name}/{file}",
        version=version,
        bom_ref=f"models/{name}/{version}/{file}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )


def document(bom: Bom) -> str:
    """Return the document without what differs from run to run."""
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    content: dict[str, Any] = json.loads(text)
    del content["serialNumber"], content["metadata"]["timestamp"]
    kept = json.dumps(content, indent=2, sort_keys=True)
    content["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, kept).urn
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
