#!/usr/bin/env python3
"""Look up the known vulnerabilities of every package that requirements files pin, with pip-audit.

Exit status: 0 if none is known, 1 if one is, 3 if the database could not be asked about every package.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NONE, FOUND, UNKNOWN = 0, 1, 3


def main(arguments: list[str]) -> int:
    """Run pip-audit, the first argument, on the requirements files that follow."""
    program, *files = arguments
    pins = list(groups(pinned(Path(file).read_text() for file in files)))
    found: list[dict[str, Any]] = []
    # One package first, so that without the database nobody waits for hundreds of refusals.
    for group in [pins[0][:1], *pins] if pins else []:
        answer = audit(program, group)
        if isinstance(answer, str):
            print(f"audit: NOT AUDITED: pip-audit could not finish: {answer}", file=sys.stderr)
            return UNKNOWN
        if not found and all("skip_reason" in each for each in answer):
            found = answer
            break
        found = [*found, *(each for each in answer if each not in found)]
    return judge(found)


def audit(program: str, pins: list[str]) -> list[dict[str, Any]] | str:
    """Return pip-audit's findings about each package, or the reason why it has none."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder) / "requirements.txt", Path(folder) / "report.json"
        requirements.write_text("\n".join(pins))
        command = [program, "--progress-spinner=off", "--disable-pip", "--no-deps", "--timeout=10"]
        command += ["--format=json", f"--output={report}", f"--requirement={requirements}"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.exists():
            return (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        found: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
        return found


def pinned(texts: Iterable[str]) -> set[tuple[str, str]]:
    """Return the names and versions that requirements pin."""
    found = [match for text in texts for match in re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", text)]
    return {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found}


def groups(pins: Iterable[tuple[str, str]]) -> Iterator[list[str]]:
    """Yield lists that together hold every pin; pip-audit rejects a file with two versions of a package."""
    left = sorted(pins)
    while left:
        first = dict(reversed(left))
        yield [f"{name}=={version}" for name, version in sorted(first.items())]
        left = [(name, version) for name, version in left if first[name] != version]


def judge(dependencies: list[dict[str, Any]]) -> int:
    """Print the result of pip-audit's report and return the exit status.

    pip-audit itself exits with 0 if the database knows no package at all, as behind a proxy that answers 404.
    """
    skipped = [each for each in dependencies if "skip_reason" in each]
    vulnerable = [each for each in dependencies if each.get("vulns")]
    for each in vulnerable:
        for found in each["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"audit: {each['name']} {each['version']}: {found['id']}, fixed in {fixed}")
    asked = len(dependencies) - len(skipped)
    print(f"audit: {asked} of {len(dependencies)} packages looked up, {len(vulnerable)} of them vulnerable")
    if vulnerable:
        return FOUND
    if skipped or not dependencies:
        names = ", ".join(str(each["name"]) for each in skipped[:5])
        print(f"audit: NOT AUDITED: {len(skipped)} packages, {names}: skipped by pip-audit", file=sys.stderr)
        return UNKNOWN
    return NONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
