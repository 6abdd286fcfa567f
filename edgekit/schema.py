"""Check a document from TOML or JSON against a JSON Schema, naming every place that does not agree.

The keywords that edgekit's own schemas use: type, enum, minimum, required, properties, additionalProperties, items,
$ref into $defs. Source: JSON Schema 2020-12, https://json-schema.org/draft/2020-12.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def problems(document: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """Every disagreement as "where: what", none if the document follows the schema."""
    return _problems(document, schema, schema.get("$defs", {}), "")


def _problems(value: object, schema: Mapping[str, Any], defs: Mapping[str, Any], where: str) -> Iterator[str]:
    if "$ref" in schema:
        yield from _problems(value, defs[schema["$ref"].removeprefix("#/$defs/")], defs, where)
        return
    place = where or "the document"
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{place} is not of type {' or '.join(kinds)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is {value!r}, not one of {', '.join(map(str, schema['enum']))}"
    if "minimum" in schema and isinstance(value, int | float) and value < schema["minimum"]:
        yield f"{place} is {value}, less than {schema['minimum']}"
    if isinstance(value, dict):
        yield from _object_problems(value, schema, defs, where)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _problems(item, schema["items"], defs, f"{where}[{index}]")


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, bool) and kind in ("integer", "number"))


def _object_problems(
    value: dict[str, object], schema: Mapping[str, Any], defs: Mapping[str, Any], where: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where or 'the document'} has no {name}"
    for name, item in value.items():
        inner = f"{where}.{name}" if where else name
        if name in known:
            yield from _problems(item, known[name], defs, inner)
        elif others is False:
            yield f"{inner} is unknown"
        elif isinstance(others, dict):
            yield from _problems(item, others, defs, inner)
