"""What a device answers, believed only after it was checked: reports in JSON, refusals, the kind of a program."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import (
    Damaged,
    DeviceUnavailable,
    DoesNotFit,
    EdgekitError,
    GateFailed,
    TargetMissing,
    TimedOut,
    Unsupported,
    UsageError,
)
from edgekit.transports import Completed, printable
from edgekit.units import Bytes

REPORT_LIMIT = Bytes(8 << 20)
MESSAGE_LIMIT = 400
# Of a report's whole numbers: what 64 bits with a sign hold. Python's have no end, and no float for the largest.
_MOST = 2**63 - 1
_SAMPLE_SECONDS = (1e-9, 1e9)
_MOST_COUNT = 2**32 - 1
# What a row of bench has when it decoded, and its device has time and memory to measure.
ROW_RATES = ("bytes_per_token", "bytes_per_second", "fraction_of_read_ceiling")
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_REFUSALS: dict[int, type[EdgekitError]] = {
    kind.exit_code: kind
    for kind in (
        EdgekitError,
        UsageError,
        Unsupported,
        TargetMissing,
        GateFailed,
        DeviceUnavailable,
        Damaged,
        TimedOut,
        DoesNotFit,
    )
}


def refusal(done: Completed) -> EdgekitError:
    """The error that a program which did not return 0 means: its own sentence and hint, cleaned and cut."""
    lines = [line for line in printable(done.stderr.decode("utf-8", "replace")).splitlines() if line.strip()]
    hint = next((line.removeprefix("hint:").strip() for line in lines if line.startswith("hint:")), "")
    # A library may have said something before.
    ours = [line for line in lines if line.startswith("edgekit-run:")]
    said = next((line for line in (*ours, *lines) if not line.startswith("hint:")), "")
    if done.returncode == 1 and not ours and lines:
        said = lines[-1]  # of a traceback
    said = said.removeprefix("edgekit-run:").strip()[:MESSAGE_LIMIT]
    if done.returncode < 0:
        return DeviceUnavailable(f"edgekit-run was ended by signal {-done.returncode}", hint=said)
    kind = _REFUSALS.get(done.returncode, DeviceUnavailable)
    return kind(said or f"edgekit-run ended with code {done.returncode}", hint=hint[:MESSAGE_LIMIT])


def elf_machine(program: Path) -> str:
    """The machine word of an executable.

    Raises:
        Damaged: not an ELF executable of a machine that edgekit knows.
    """
    with program.open("rb") as stream:
        head = stream.read(20)
    machine = _ELF_MACHINES.get(int.from_bytes(head[18:20], "little"))
    if len(head) < 20 or head[:5] != b"\x7fELF\x02" or machine is None:
        raise Damaged(f"{program.name} in the bundle is not a program for {' or '.join(_ELF_MACHINES.values())}")
    return machine


def parse_report(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        DeviceUnavailable: too long, too deep, not JSON, or not an object of finite numbers.
    """
    if len(data) > REPORT_LIMIT:
        raise DeviceUnavailable(f"the device's report takes {Bytes(len(data))}, at most {REPORT_LIMIT} are read")
    try:
        report = json.loads(
            data.decode("utf-8", "replace"), parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise DeviceUnavailable(f"the device's report is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise DeviceUnavailable("the device's report is not a JSON object")
    return report


def _whole(digits: str) -> int:
    number = int(digits)
    if abs(number) > _MOST:
        raise ValueError(f"{digits[:20]}... is beyond 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is beyond a double float")
    return number


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def table(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = report.get(name, {})
    if not isinstance(part, dict):
        raise DeviceUnavailable(f"'{name}' in the device's report is not a table")
    return part


def token_list(report: Mapping[str, Any], name: str) -> tuple[int, ...]:
    tokens = report.get(name)
    if not isinstance(tokens, list) or not all(map(_is_count, tokens)):
        raise DeviceUnavailable(f"'{name}' in the device's report is not a list of tokens")
    return tuple(tokens)


def is_row(row: Mapping[str, Any]) -> bool:
    samples = row.get("samples")
    return (
        isinstance(row.get("test"), str)
        and all(_is_count(row.get(name)) for name in ("threads", "depth", "tokens"))
        and row["tokens"] > 0
        and isinstance(samples, list)
        and bool(samples)
        and all(_is_number(sample, *_SAMPLE_SECONDS) for sample in samples)
        and all(row.get(name) is None or _is_number(row[name], 0, _MOST) for name in ROW_RATES)
        and isinstance(row.get("fell_back", False), bool)
        and isinstance(row.get("kernels", []), list)
        and all(isinstance(kernel, str) for kernel in row.get("kernels", []))
    )


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value, 0, _MOST_COUNT)
