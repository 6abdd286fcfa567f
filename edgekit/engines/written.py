"""What an engine's artifact is, said beside it in engine.json: whoever runs it, or asks, need not look inside.

Beside the artifact lie also `probe` (kernels/program/probe_format.h) and the bundle's tokenizer.json.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from edgekit.disk import write_whole, writing
from edgekit.errors import Damaged, EdgekitError, TargetMissing, UsageError
from edgekit.schema import problems
from edgekit.transports import printable
from edgekit.units import Bytes

DESCRIPTION: Final = "engine.json"
PROBE: Final = "probe"
TOKENIZER: Final = "tokenizer.json"

_SCHEMA_VERSION: Final = 1
_MOST_DESCRIPTION_BYTES: Final = 1 << 20
_MOST_PROBE_BYTES: Final = 256 << 20
_MOST_REASON: Final = 200  # characters

_TEXT: Final = {"type": "string", "maxLength": 200}
_COUNT: Final = {"type": "integer", "minimum": 0, "maximum": 2**62}
_POSITIVE: Final = {**_COUNT, "minimum": 1, "maximum": 2**31 - 1}
_TOKEN: Final = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A model that an engine wrote, for which file, and what is known of it without running it.

    `engine_version` is the runtime's that it was made with. `kernels`: "edgekit" or "runtime", whose matrix products it
    runs. `bytes_per_token` is what a token reads of the weights: all but the rows that are looked up.
    """

    file: Path
    engine: str
    engine_version: str
    kernels: str
    made_from: str
    bos: int | None
    eos: tuple[int, ...]
    vocab: int
    context: int
    kv_format: str
    kv_bytes: Bytes
    weights_bytes: Bytes
    bytes_per_token: Bytes

    @property
    def probe(self) -> bytes:
        """The probe's bytes; empty if there is none."""
        file = self.file.with_name(PROBE)
        if not file.exists():
            return b""
        with file.open("rb") as stream:
            data = stream.read(_MOST_PROBE_BYTES + 1)
        if len(data) > _MOST_PROBE_BYTES:
            raise Damaged(f"{file} takes more than {Bytes(_MOST_PROBE_BYTES)}", hint="compile again")
        return data


_DOCUMENT: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema", *(field.name for field in fields(Written) if field.name != "file")],
    "properties": {
        "schema": {"type": "integer", "enum": [_SCHEMA_VERSION]},
        **dict.fromkeys(("engine", "engine_version", "kernels", "made_from", "kv_format"), _TEXT),
        "kernels": {"enum": ["edgekit", "runtime"]},
        "bos": {**_TOKEN, "type": ["integer", "null"]},
        "eos": {"type": "array", "items": _TOKEN, "maxItems": 1000},
        **dict.fromkeys(("vocab", "context"), _POSITIVE),
        **dict.fromkeys(("kv_bytes", "weights_bytes", "bytes_per_token"), _COUNT),
    },
}


def describe(written: Written, *, probe: bytes) -> None:
    """Writes engine.json and the probe beside the artifact. Equal models give equal bytes."""
    with writing(written.file.with_name(PROBE)):
        written.file.with_name(PROBE).write_bytes(probe)
    document = {"schema": _SCHEMA_VERSION, **asdict(written)}
    del document["file"]
    write_whole(written.file.with_name(DESCRIPTION), json.dumps(document, indent=2, sort_keys=True) + "\n")


def read_written(file: Path) -> Written:
    """What is known of the artifact `file`. Links to it are followed.

    Raises:
        UsageError: there is no such file.
        Damaged: there is no engine.json beside it that `describe` wrote.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}", hint="give the model in a bundle that edgekit compile wrote")
    file = file.resolve()
    beside = file.with_name(DESCRIPTION)
    try:
        with beside.open("rb") as stream:
            data = stream.read(_MOST_DESCRIPTION_BYTES + 1)
        document = json.loads(data[:_MOST_DESCRIPTION_BYTES])
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{beside} cannot be read: {error}", hint="compile again") from error
    for problem in problems(document, _DOCUMENT):
        raise Damaged(f"{beside}: {printable(problem)}", hint="compile again")
    given = {key: value for key, value in document.items() if key != "schema"}
    sizes = {key: Bytes(given[key]) for key in ("kv_bytes", "weights_bytes", "bytes_per_token")}
    return Written(**{**given, **sizes, "file": file, "eos": tuple(given["eos"])})


def refused(written: Written, version: str, error: BaseException | str) -> EdgekitError:
    """The error for a model that the runtime `version`, such as "onnxruntime 1.32.0", does not take."""
    reason = printable(" ".join(str(error).split()))[:_MOST_REASON]
    if version == written.engine_version:
        return Damaged(f"{version} refuses {written.file}: {reason}", hint="compile again")
    return TargetMissing(
        f"{written.file.name} was made with {written.engine_version} and {version} refuses it: {reason}",
        hint=f"install {written.engine_version.replace(' ', '==')}, or compile again",
    )
