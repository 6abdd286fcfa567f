"""Number formats for weights, and which tensor gets which.

A scheme `q<bits>g<group>` stores value = scale * (code + offset): signed codes, one bf16 scale for each
output row and each group of `group` neighbours along k. `t2g<group>` is ternary; `f16` and `f32` are not quantized.
"""

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import Unsupported, UsageError, one_of

GROUPS = (32, 64, 128)
DEFAULT_METHOD = "rtn"
DEFAULT_RECIPE = "q4g128"

# name -> (lowest code, highest code, offset, bits a code takes in memory)
_FORMATS = {
    "q8": (-127, 127, 0.0, 8),
    "q4": (-8, 7, 0.0, 4),
    "q3": (-4, 3, 0.0, 3),
    "q2": (-2, 1, 0.5, 2),
    "t2": (-1, 1, 0.0, 2),
}
_FLOATS = {"f32": 32, "f16": 16}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A number format for a weight matrix. `format` is q8, q4, q3, q2, t2, f16 or f32; `group` is 0 for floats."""

    format: str
    group: int

    @property
    def is_float(self) -> bool:
        return self.format in _FLOATS

    @property
    def bits(self) -> int:
        """Bits one code takes in memory, scales not counted."""
        return _FLOATS[self.format] if self.is_float else _FORMATS[self.format][3]

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code, both included."""
        return _FORMATS[self.format][:2]

    @property
    def offset(self) -> float:
        """What is added to a code before it is scaled: 1/2 for q2, else 0."""
        return _FORMATS[self.format][2]

    def groups(self, k: int) -> int:
        """Groups in a row of k weights; the last may be partial."""
        return -(-k // self.group)

    def __str__(self) -> str:
        return self.format if self.is_float else f"{self.format}g{self.group}"


def parse_scheme(text: str) -> Scheme:
    """The scheme that `text` names.

    Raises:
        Unsupported: no such format or group.
    """
    if text in _FLOATS:
        return Scheme(text, 0)
    match = re.fullmatch(r"([qt]\d)g(\d{1,4})", text)
    if match is None or match[1] not in _FORMATS or int(match[2]) not in GROUPS:
        raise Unsupported(
            f"unknown scheme '{text}'",
            hint=f"a format ({', '.join(_FORMATS)}) and a group ({', '.join(map(str, GROUPS))}),"
            f" for example q4g128; or {one_of(_FLOATS)}",
        )
    return Scheme(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose name matches `pattern` (shell wildcards, without `.weight`) get `scheme`."""

    pattern: str
    scheme: Scheme


@dataclass(frozen=True, slots=True)
class Recipe:
    """The method, and which scheme every weight matrix gets: the first matching rule wins, then head, then default."""

    default: Scheme
    head: Scheme
    method: str = DEFAULT_METHOD
    rules: tuple[Rule, ...] = ()

    def rule_for(self, tensor: str) -> Rule:
        """The rule for the matrix `tensor`, a checkpoint name such as `model.layers.0.mlp.up_proj.weight`."""
        name = tensor.removesuffix(".weight")
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.pattern):
                return rule
        is_head = name.endswith(("embed_tokens", "lm_head"))
        return Rule(name, self.head if is_head else self.default)

    def __str__(self) -> str:
        parts = [str(self.default), f"head={self.head}"]
        parts += [f"method={self.method}"] if self.method != DEFAULT_METHOD else []
        parts += [f"{rule.pattern}={rule.scheme}" for rule in self.rules]
        return ",".join(parts)


def _head_for(default: Scheme) -> Scheme:
    """The head's scheme where none is named: the default, but never fewer than 4 bits."""
    return default if default.is_float or default.bits >= 4 else Scheme("q4", default.group)


def _recipe(default: str, entries: list[tuple[str, str]], method: str) -> Recipe:
    scheme = parse_scheme(default)
    schemes: dict[str, Scheme] = {}
    for written, name in entries:
        pattern = written.removesuffix(".weight")
        # So that the recipe as text, which a bundle keeps, is read as the same recipe.
        if not pattern or pattern != pattern.strip() or "," in pattern or "=" in pattern or pattern == "method":
            raise UsageError(
                f"'{written}' in the recipe is not a pattern",
                hint="the name of a matrix with * and ?, without commas, equals signs and outer spaces",
            )
        if pattern in schemes:
            raise UsageError(f"the recipe names '{pattern}' twice")
        schemes[pattern] = parse_scheme(name)
    head = schemes.pop("head", None) or _head_for(scheme)
    rules = (Rule(pattern, rule) for pattern, rule in schemes.items())
    return Recipe(scheme, head, method, tuple(rules))


def find_recipe(text: str) -> Recipe:
    """The recipe in the .toml file that `text` names, or that `text` is, as `parse_recipe` reads it.

    The file holds `scheme`, optionally `method`, `head`, and a table `[tensors]` of pattern = scheme.

    Raises:
        UsageError: not of that form.
        Unsupported: an unknown scheme.
    """
    return _read_recipe(Path(text)) if text.endswith(".toml") else parse_recipe(text)


def parse_recipe(text: str) -> Recipe:
    """The recipe `SCHEME[,head=SCHEME][,method=METHOD][,PATTERN=SCHEME...]`. Opens no file: it may be a stranger's.

    Raises:
        UsageError: not of that form.
        Unsupported: an unknown scheme.
    """
    default, *rest = [part.strip() for part in text.split(",")]
    entries, method = [], None
    for part in rest:
        pattern, equals, scheme = part.partition("=")
        if not (pattern and equals and scheme):
            raise UsageError(f"'{part}' in the recipe is not PATTERN=SCHEME", hint="for example head=q4g64")
        if pattern.strip() != "method":
            entries.append((pattern.strip(), scheme.strip()))
        elif method is None:
            method = scheme.strip()
        else:
            raise UsageError("the recipe names 'method' twice")
    return _recipe(default, entries, method or DEFAULT_METHOD)


def _read_recipe(path: Path) -> Recipe:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} is not TOML: {error}") from error
    unknown = sorted(table.keys() - {"scheme", "method", "head", "tensors"})
    if unknown or not isinstance(table.get("scheme"), str):
        wrong = f"unknown keys: {', '.join(unknown)}" if unknown else "no scheme"
        raise UsageError(
            f"the recipe {path} has {wrong}",
            hint='keys: scheme = "q4g128", method = "rtn", head = "q4g64", [tensors] "*.down_proj" = "q4g64"',
        )
    tensors = table.get("tensors", {})
    if not isinstance(tensors, dict):
        raise UsageError(f"tensors in the recipe {path} is not a table", hint="write a [tensors] section")
    entries = [("head", table["head"])] if "head" in table else []
    entries += tensors.items()
    method = table.get("method", DEFAULT_METHOD)
    for key, value in [("method", method), *entries]:
        if not isinstance(value, str):
            raise UsageError(f"'{key}' in the recipe {path} is not a string", hint='for example "q4g64" or "rtn"')
    return _recipe(table["scheme"], entries, method)
