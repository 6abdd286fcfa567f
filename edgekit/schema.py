"""Check a document from TOML or JSON against a JSON Schema, naming every place that does not agree."""

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator


def problems(document: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """Every disagreement as "where: what", none if the document follows the schema."""
    for error in Draft202012Validator(schema).iter_errors(document):
        # A hostile document may be long: the message quotes it.
        yield f"{error.json_path}: {error.message[:200]}"
