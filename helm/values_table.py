"""Writes the chart's README with the table of its values.

`make tables` runs this. Meanings are the comments of values.yaml; types and bounds are values.schema.json's.
A test fails if the committed file differs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent
README = CHART / "README.md"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"

INTRODUCTION = """\
# inkserve

<!-- `make tables` writes this page from values.yaml and values.schema.json. -->

Classifies and generates images over HTTP, batching rows across requests on one device. The chart needs
Kubernetes 1.27 and an image of the service; `docs/image.md` of the repository says how to build it. Replace
`registry.example.com` by your registry.

```console
$ helm install digits inkserve-{version}.tgz -n serving --create-namespace \\
    --set image.repository=registry.example.com/inkserve --wait
$ helm test digits -n serving
```

`docs/deployment.md` of the repository explains GPUs, where models come from, keys, TLS, shutdown and
autoscaling, and says what was checked. `docs/settings.md` lists what `settings` accepts beyond these rows.

## Values

The schema rejects other names. It also rejects null, unless null is the default or removes an entry
from a map with free names.
"""

HEADER = "\n| value | default | accepts | meaning |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Value:
    """A value of the chart. default: None for a section, whose values follow."""

    path: tuple[str, ...]
    default: str | None
    accepts: str
    meaning: str

    def row(self) -> str:
        """Return the value's row of the table."""
        cells = (f"`{'.'.join(self.path)}`", self.default or "", self.accepts, self.meaning)
        return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def main() -> None:
    """Write the README."""
    README.write_text(readme())


def readme() -> str:
    """Return the text of the README."""
    values = list(read_values())
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    sections = dict.fromkeys(value.path[0] for value in values if len(value.path) > 1)
    single = [value.row() for value in values if value.path[0] not in sections]
    parts = [INTRODUCTION.replace("{version}", version), HEADER, *single]
    for section in sections:
        head, *rest = [value for value in values if value.path[0] == section]
        parts += [f"\n### {section}\n", f"\n{head.meaning}\n" if head.meaning else "", HEADER]
        parts += [value.row() for value in rest]
    return "".join(parts)


def read_values() -> Iterator[Value]:
    """Yield the values in the order of values.yaml, each section before its own."""
    text = VALUES.read_text()
    schema = json.loads(SCHEMA.read_text())
    yield from _values(
        yaml.compose(text), yaml.safe_load(text), schema, (), _Reader(text.splitlines(), schema)
    )


@dataclass(frozen=True)
class _Reader:
    lines: list[str]
    schema: dict[str, Any]

    def comment(self, line: int) -> str:
        """Return the comment above a line, joined to one."""
        first = line
        while first and self.lines[first - 1].lstrip().startswith("#"):
            first -= 1
        return " ".join(each.strip().removeprefix("#").strip() for each in self.lines[first:line])

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        found: dict[str, Any] = self.schema["$defs"][name] if name else schema
        return found


def _values(
    node: yaml.Node | None, given: Any, schema: dict[str, Any], path: tuple[str, ...], reader: _Reader
) -> Iterator[Value]:
    assert isinstance(node, yaml.MappingNode)
    for key, child in node.value:
        name = key.value
        inner = reader.resolved(schema["properties"][name])
        meaning = reader.comment(key.start_mark.line)
        is_section = bool(given[name]) and "properties" in inner and isinstance(given[name], dict)
        default = None if is_section else f"`{json.dumps(given[name])}`"
        if not is_section or meaning or not path:
            yield Value((*path, name), default, "" if is_section else _accepts(inner), meaning)
        if is_section:
            yield from _values(child, given[name], inner, (*path, name), reader)


def _accepts(schema: dict[str, Any]) -> str:
    """Return the types, or the values, that a schema accepts, with its bounds."""
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = {"object": "map", "array": "list"}
    return " or ".join(names.get(str(kind), str(kind)) for kind in kinds) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    least = schema.get("minimum")
    above = schema.get("exclusiveMinimum")
    most = schema.get("maximum")
    low = f"above {above}" if above is not None else "" if least is None else f"{least}"
    if not low:
        return ""
    if most is None:
        return f", {low} or more" if above is None else f", {low}"
    return f", {low} to {most}"


if __name__ == "__main__":
    main()
