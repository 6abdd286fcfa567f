"""Check a document from TOML or JSON against a JSON Schema, naming every place that does not agree.

Stricter than JSON Schema in two ways: 16.0 is no integer, and numbers are finite, which TOML does not ask for.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.validators import extend


def _is_integer(checker: TypeChecker, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: TypeChecker, value: object) -> bool:
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


_Validator: Final = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number}),
)


def problems(document: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """Every disagreement as "where: what", none if the document follows the schema."""
    for error in _Validator(schema).iter_errors(document):
        # A hostile document may be long: the message quotes it.
        yield f"{error.json_path}: {_message(error)[:200]}"


def _message(error: ValidationError) -> str:
    """That of jsonschema, except where it would quote all there is to say that it has none or several of the forms."""
    if error.validator != "oneOf":
        return error.message
    reasons = dict.fromkeys(reason.message for reason in error.context or ())
    return ", or ".join(reasons) if reasons else "it may have one of several forms, and has two at once"
