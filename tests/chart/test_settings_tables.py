"""The tables that are generated from the service's settings."""

import json

import pytest
import yaml

from helm.settings_tables import CHOSEN, NARROWED, SCHEMA, VALUES, chart_name, files
from service.settings import RENAMED, Settings


@pytest.mark.parametrize("name", [file.name for file in files()])
def test_a_committed_table_is_what_the_settings_generate(name: str) -> None:
    (text, committed) = next((text, file.read_text()) for file, text in files().items() if file.name == name)
    assert committed == text, f"{name} does not follow service/settings.py: run `make tables` and commit it"


def test_the_schema_has_every_setting_and_every_old_name() -> None:
    settings = json.loads(SCHEMA.read_text())["properties"]["settings"]["properties"]
    assert settings.keys() == {chart_name(name) for name in (*Settings.model_fields, *RENAMED)}
    assert {name for name, field in settings.items() if "deprecated" in field} == set(
        map(chart_name, RENAMED)
    )


def test_the_schema_has_the_services_types_and_bounds() -> None:
    settings = json.loads(SCHEMA.read_text())["properties"]["settings"]["properties"]
    description = {"description": Settings.model_fields["max_batch_size"].description}
    assert settings["maxBatchSize"] == description | {
        "default": 256,
        "maximum": 4096,
        "minimum": 1,
        "type": "integer",
    }
    assert settings["socket"]["type"] == ["string", "null"]
    assert settings["provider"]["enum"] == ["cpu", "cuda", "tensorrt"]


def test_the_chart_chooses_every_setting_that_is_null_in_its_values() -> None:
    in_chart = yaml.safe_load(VALUES.read_text())["settings"]
    assert {name for name, value in in_chart.items() if value is None} == set(map(chart_name, CHOSEN))


def test_the_chart_narrows_only_settings_that_exist() -> None:
    assert NARROWED.keys() <= Settings.model_fields.keys()
    settings = json.loads(SCHEMA.read_text())["properties"]["settings"]["properties"]
    assert settings["port"]["minimum"] == 1
    assert settings["modelsDir"]["pattern"] == "^/."
