"""Render a Jinja chat template, as a program of its own with little memory, little time and no right to write.

A chat template comes with the checkpoint and is code from a stranger. Jinja's sandbox keeps it from Python's internals,
but not from asking for a string of a terabyte or an endless loop; the operating system does. `render_chat` in
edgekit/tokenizer.py starts this file; it imports nothing of edgekit, so that it also runs isolated (`python -I -S`).
FOLDERS are those of jinja2 and markupsafe: without `-I` and `-S` any folder could put its own json.py before Python's,
and with them a jinja2 that was installed for one person or is on PYTHONPATH is not found.

    python -I -S chat_template.py FOLDERS < {"template": ..., "variables": {...}}, as JSON, > text
"""

import json
import resource
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[1:]

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2.nodes import Node
from jinja2.parser import Parser

MAX_MEMORY_BYTES = 1 << 30
MAX_SECONDS = 3
MAX_CHARACTERS = 1 << 24


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what a trainer learns from: here its contents alone."""

    tags = {"generation"}  # noqa: RUF012 - the type is Jinja's

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()`, which cannot hold the names that lead to Python's internals."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template cannot set {name!r}")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format_string: str) -> str:
    return datetime.now().strftime(format_string)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, variables: dict[str, Any]) -> str:
    """The text of a chat template, with the filters and functions that `transformers` gives it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    parts: list[str] = []
    length = 0
    for part in environment.from_string(template).generate(variables):
        length += len(part)
        if length > MAX_CHARACTERS:
            raise MemoryError(f"more than {MAX_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def _limit(limits: Sequence[tuple[int, int]]) -> None:
    for kind, most in limits:
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _limit(
        (
            (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
            (resource.RLIMIT_CPU, MAX_SECONDS),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NPROC, 0),
            (resource.RLIMIT_CORE, 0),
        )
    )
    request = json.load(sys.stdin.buffer)
    sys.stdout.buffer.write(render(request["template"], request["variables"]).encode())
