"""Writes the tables of settings: those of values.schema.json, and docs/settings.md.

`make tables` runs this. Both follow `service.settings.Settings`; a test fails if the committed files differ.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from service.settings import RENAMED, Settings, flag, variable

CHART = Path(__file__).parent
SCHEMA = CHART / "values.schema.json"
VALUES = CHART / "values.yaml"
DOCUMENT = CHART.parent / "docs" / "settings.md"

NARROWED: dict[str, dict[str, Any]] = {
    "port": {"minimum": 1},  # with 0 the system chooses, and the probes would not know the port
    "agent_port": {"minimum": 1},  # the pod declares it
    "grpc_port": {"minimum": 1},
    "models_dir": {"pattern": "^/."},  # a volume is mounted there
    "drain_seconds": {"type": ["number", "null"]},  # null: the chart chooses
}
"""Settings whose values the chart restricts further than the service does, or whose null it replaces."""

CHOSEN = {"drain_seconds": "`10`, or `0` for an only pod without a surge"}
"""The values that the chart chooses where values.yaml has null."""

INTRODUCTION = """\
# Settings

<!-- `make tables` writes this page from service/settings.py. -->

Each setting is a flag, an environment variable and a value of the Helm chart. A flag wins over its variable,
and both win over the default.

| | example |
|---|---|
| flag | `--max-batch-size 64`; for a switch, `--access-log` or `--no-access-log` |
| environment variable | `INKSERVE_MAX_BATCH_SIZE=64`; for a switch, `true` or `false` |
| chart | `settings.maxBatchSize: 64` |

Startup fails with exit code 2 if a flag is unknown, an `INKSERVE_` variable is not a setting, or a value is
out of bounds.

| flag | default | meaning |
|---|---|---|
"""

OLD_NAMES = """
## Old names

Version 0.3.0 removes these. Until then the service accepts them and logs a warning. If both variables or both
values of the chart are set, the new one wins.

| old name | new name |
|---|---|
"""


def main() -> None:
    """Write both files."""
    for file, text in files().items():
        file.write_text(text)


def files() -> dict[Path, str]:
    """Return the generated files and their texts."""
    return {SCHEMA: _schema(), DOCUMENT: _document()}


def chart_name(name: str) -> str:
    """Return the chart's name of a setting: max_batch_size is maxBatchSize."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _schema() -> str:
    schema = json.loads(SCHEMA.read_text())
    properties = _properties()
    settings = {chart_name(name): field | NARROWED.get(name, {}) for name, field in properties.items()}
    for old, new in RENAMED.items():
        field = {key: value for key, value in settings[chart_name(new)].items() if key != "default"}
        field["description"] = f"old name of {chart_name(new)}, removed in 0.3.0"
        settings[chart_name(old)] = field | {"deprecated": True}
    schema["properties"]["settings"]["properties"] = settings
    return json.dumps(schema, indent=2) + "\n"


def _document() -> str:
    in_chart = yaml.safe_load(VALUES.read_text())["settings"]
    rows = [_row(name, field, in_chart) for name, field in _properties().items()]
    names = [
        f"| `{name_of(old)}` | `{name_of(new)}` |\n"
        for old, new in RENAMED.items()
        for name_of in (flag, variable, lambda name: f"settings.{chart_name(name)}")
    ]
    return INTRODUCTION + "".join(rows) + (OLD_NAMES + "".join(names) if RENAMED else "")


def _properties() -> dict[str, dict[str, Any]]:
    """Return each setting's JSON schema, without what pydantic adds for itself."""
    properties = {}
    for name, field in Settings.model_json_schema()["properties"].items():
        kept = {key: value for key, value in field.items() if key not in ("title", "format")}
        if "anyOf" in kept:
            options = kept.pop("anyOf")
            bounds = {key: value for option in options for key, value in option.items() if key != "format"}
            kept |= bounds | {"type": [option["type"] for option in options]}
        properties[name] = kept
    return properties


def _row(name: str, field: dict[str, Any], in_chart: dict[str, Any]) -> str:
    default = _default(field["default"])
    if chart_name(name) in in_chart and in_chart[chart_name(name)] != field["default"]:
        default += f"; in the chart {CHOSEN.get(name) or _default(in_chart[chart_name(name)])}"
    return f"| `{flag(name)}` | {default} | {field['description']}{_values(field)} |\n"


def _default(value: object) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else f"`{value}`"


def _values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return f". Values: {', '.join(f'`{value}`' for value in field['enum'])}"
    if "exclusiveMinimum" in field:
        return f". Values: above {field['exclusiveMinimum']}, up to {field['maximum']}"
    if "maximum" in field:
        return f". Values: {field['minimum']} to {field['maximum']}"
    return f". Values: {field['minimum']} or more" if "minimum" in field else ""


if __name__ == "__main__":
    main()
