"""The instruction sets and cores that edgekit knows, read from targets/isa.json and targets/cores."""

import importlib.resources
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.errors import Damaged, TargetMissing
from edgekit.schema import problems
from edgekit.units import Bytes


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set that kernels are written for. `architecture` is "any" for scalar."""

    word: str
    architecture: str
    features: frozenset[str]
    vector_bits: int


@dataclass(frozen=True, slots=True)
class Core:
    """One core's arithmetic: 8-bit products summed a cycle for each ISA word, vector operations, float fma lanes."""

    name: str
    title: str
    architecture: str
    features: frozenset[str]
    in_order: bool
    l1d_bytes: Bytes
    vector_ops_per_cycle: int
    f32_fma_per_cycle: int
    int8_macs_per_cycle: Mapping[str, int] = field(hash=False)
    source: str


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature's bit in edgekit/cpu.h and the words of /proc/cpuinfo that must all be there for it."""

    bit: int
    cpuinfo: frozenset[str]


def data_folder() -> Path:
    """Where the target files are: inside the installed package, or beside it in a source tree.

    Raises:
        TargetMissing: in neither place.
    """
    package = Path(str(importlib.resources.files("edgekit")))
    for folder in (package / "targets", package.parent / "targets"):
        if (folder / "isa.json").is_file():
            return folder
    raise TargetMissing("the target files of edgekit are missing", hint="install edgekit again")


def macs_per_cycle(core: Core, isa: str) -> int:
    """8-bit products summed a cycle; one without vectors, and the nearest lesser ISA where a word is not listed."""
    for known in known_isas()[_isa_index(isa) :]:
        if known.word in core.int8_macs_per_cycle:
            return core.int8_macs_per_cycle[known.word]
    return 1


@cache
def load_core(name: str) -> Core:
    """The core described in targets/cores/<name>.toml."""
    table = read_table(data_folder() / "cores" / f"{name}.toml", "core")
    macs = {word: count for word, count in table["int8_macs_per_cycle"].items() if word != "source"}
    return Core(
        name=name,
        title=table["title"],
        architecture=table["architecture"],
        features=frozenset(table["features"]),
        in_order=table["in_order"],
        l1d_bytes=Bytes(table["cache"]["l1d_bytes"]),
        vector_ops_per_cycle=table["vector"]["ops_per_cycle"],
        f32_fma_per_cycle=table["vector"]["f32_fma_per_cycle"],
        int8_macs_per_cycle=macs,
        source=table["int8_macs_per_cycle"]["source"],
    )


@cache
def known_isas() -> tuple[Isa, ...]:
    """Every ISA word of the kernel names, best first within an architecture."""
    return tuple(
        Isa(entry["word"], entry["architecture"], frozenset(entry["features"]), entry["vector_bits"])
        for entry in _isa_table()["isas"]
    )


@cache
def known_features() -> dict[str, Feature]:
    """Every CPU feature that kernels ask for, by name."""
    return {
        name: Feature(entry["bit"], frozenset(entry["cpuinfo"])) for name, entry in _isa_table()["features"].items()
    }


def feature_words(bits: int) -> tuple[str, ...]:
    """The names of the features that are set in `bits` of edgekit/cpu.h, in alphabetical order."""
    return tuple(sorted(name for name, feature in known_features().items() if bits >> feature.bit & 1))


def find_isa(word: str) -> Isa:
    """The ISA of that word, one of the kernel names' grammar."""
    return known_isas()[_isa_index(word)]


def _isa_index(word: str) -> int:
    return next(index for index, isa in enumerate(known_isas()) if isa.word == word)


@cache
def _isa_table() -> dict[str, Any]:
    path = data_folder() / "isa.json"
    return _checked(json.loads(path.read_text("utf-8")), "isas", path)


def read_table(path: Path, kind: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise TargetMissing(f"cannot read {path.name}: {error.strerror}", hint="install edgekit again") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path.name} is not TOML: {error}") from error
    return _checked(table, kind, path)


def _checked(table: dict[str, Any], kind: str, path: Path) -> dict[str, Any]:
    for problem in problems(table, {**_schema(), "$ref": f"#/$defs/{kind}"}):
        raise Damaged(f"{path.name}: {problem}", hint=f"targets/schema.json says what a {kind} holds")
    return table


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((data_folder() / "schema.json").read_text("utf-8"))
    return schema
