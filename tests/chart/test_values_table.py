"""The chart's README, which is generated from its values."""

import yaml

from helm.values_table import README, VALUES, read_values, readme
from tests.support.charts import Values


def test_the_committed_readme_is_what_the_values_generate() -> None:
    assert README.read_text() == readme(), (
        "helm/README.md does not follow the values: run `make tables` and commit it"
    )


def leaves(values: Values, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the path of each value that is no map with entries."""
    found = set()
    for name, value in values.items():
        found |= leaves(value, (*path, name)) if isinstance(value, dict) and value else {(*path, name)}
    return found


def test_the_table_has_every_value_with_its_default_and_its_comment() -> None:
    values = {value.path: value for value in read_values()}
    for path in leaves(yaml.safe_load(VALUES.read_text())):
        # A map with free names is a value of its own.
        assert any(path[:length] in values for length in range(len(path), 1, -1)) or path in values, path
    assert values["split", "workers"].row() == (
        "| `split.workers` | `2` | integer, 1 to 256 | "
        "Number of HTTP worker processes; each uses at most one core. |\n"
    )
    assert values["image", "pullPolicy"].accepts == '`"Always"`, `"IfNotPresent"`, `"Never"`'
    assert values["loadTest", "rate"].accepts == "number, above 0 to 1000000"
    assert values["models", "imageVolume", "reference"].row().count("&lt;name>") == 1
    assert values["split",].default is None
    assert values["models", "objectStore", "remote"].default == (
        '`{"type": "s3", "provider": "AWS", "env_auth": "true"}`'
    )
