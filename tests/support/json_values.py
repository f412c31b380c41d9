"""Random values of a JSON schema, for hypothesis: the part of the language that values.schema.json speaks."""

import re
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
FREE_FORM = "free-form"
"""How the $comment of a schema begins whose fields only Kubernetes knows: random ones are never valid."""
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["C"])
TEXT = st.text(CHARACTERS, max_size=20)


def values_of(schema: Schema, root: Schema) -> st.SearchStrategy[Any]:
    """Values of `schema`, whose $ref look into `root`; its if, allOf and anyOf are left to the caller."""
    if "$ref" in schema:
        return values_of(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if schema.get("$comment", "").startswith(FREE_FORM) and "properties" not in schema:
        return st.just({})
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_MAKERS[kind](schema, root) for kind in kinds])


def _strings(schema: Schema, _: Schema) -> st.SearchStrategy[str]:
    longest = schema.get("maxLength", 40)
    if "pattern" not in schema:
        return TEXT.filter(lambda text: len(text) <= longest)
    # Go's $ is the end of the text, Python's also lies before a last newline.
    pattern = re.compile(schema["pattern"].replace("$", r"\Z"), re.ASCII)
    texts = st.from_regex(pattern, alphabet=CHARACTERS)
    return texts.filter(lambda text: len(text) <= longest)


def _integers(schema: Schema, _: Schema) -> st.SearchStrategy[int]:
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    return st.integers(least, schema.get("maximum", 2**31))


def _numbers(schema: Schema, _: Schema) -> st.SearchStrategy[float]:
    return st.floats(
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum"),
        exclude_min="exclusiveMinimum" in schema,
    )


def _arrays(schema: Schema, root: Schema) -> st.SearchStrategy[list[Any]]:
    items = values_of(schema["items"], root)
    unique = str if schema.get("uniqueItems") else None
    return st.lists(items, min_size=schema.get("minItems", 0), max_size=3, unique_by=unique)


def _objects(schema: Schema, root: Schema) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" in schema:
        parts = {name: values_of(child, root) for name, child in schema["properties"].items()}
        required = schema.get("required", [])
        if "maxProperties" in schema:
            return _some_of(parts, required, schema["maxProperties"] - len(required))
        return st.fixed_dictionaries(
            {name: parts[name] for name in required},
            optional={name: part for name, part in parts.items() if name not in required},
        )
    if "additionalProperties" not in schema:
        return st.just({})
    names = _strings(schema["propertyNames"], root)
    return st.dictionaries(names, values_of(schema["additionalProperties"], root), max_size=3)


def _some_of(
    parts: dict[str, st.SearchStrategy[Any]], required: list[str], more: int
) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the required properties and exactly `more` of the others."""
    others = st.lists(
        st.sampled_from(sorted(parts.keys() - required)), min_size=more, max_size=more, unique=True
    )
    return others.flatmap(
        lambda names: st.fixed_dictionaries({name: parts[name] for name in [*required, *names]})
    )


_MAKERS = {
    "string": _strings,
    "integer": _integers,
    "number": _numbers,
    "boolean": lambda _, __: st.booleans(),
    "null": lambda _, __: st.none(),
    "array": _arrays,
    "object": _objects,
}
