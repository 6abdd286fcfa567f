"""Where each tensor lies in a safetensors file, after every promise of the format has been checked.

The format: https://huggingface.co/docs/safetensors. An 8-byte length, a JSON header, then the tensors' bytes without
holes. The files come from strangers, so nothing is taken from the header that the file's size does not bear out.
"""

import json
import math
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.errors import Damaged, Unsupported

MOST_HEADER_BYTES: Final = 100_000_000  # the limit of the safetensors package
MOST_DIMENSIONS: Final = 16
_ADDRESSABLE: Final = 1 << 63

# Bits of an element, for every dtype of the format; edgekit reads three of them (checkpoint.py).
DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
    | dict.fromkeys(("I32", "U32", "F32"), 32)
    | dict.fromkeys(("I64", "U64", "F64", "C64"), 64)
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `bytes` bytes of little-endian `dtype` in `file`, from `offset` on, last dimension fastest."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    bytes: int


def parse_json(text: bytes, what: str) -> dict[str, object]:
    """The JSON object in `text`. Strict: UTF-8, no NaN or Infinity, no key twice.

    Raises:
        Damaged: not such an object; the message names `what`.
    """

    def no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) != len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {_quoted(key)} appears twice")
        return table

    def no_constant(name: str) -> object:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=no_key_twice, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Damaged(f"{what} is not valid JSON: {reason}", hint="download it again") from error
    if not isinstance(value, dict):
        raise Damaged(f"{what} is not a JSON object", hint="download it again")
    return value


def read_header(file: Path, shown: str) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes. Messages call the file `shown`.

    Raises:
        Damaged: the file breaks a promise of the format.
        Unsupported: a dtype the format does not have.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{shown} is not a regular file", hint="download it again")
        size = status.st_size
        with file.open("rb") as stream:
            length_bytes = stream.read(8)
            if len(length_bytes) < 8:
                raise _damaged(shown, f"it has {size} bytes, fewer than its header length takes")
            (length,) = struct.unpack("<Q", length_bytes)
            if length > MOST_HEADER_BYTES:
                raise _damaged(
                    shown, f"its header would take {length} bytes, more than the {MOST_HEADER_BYTES} allowed"
                )
            if length > size - 8:
                raise _damaged(shown, f"its header would take {length} bytes, the file has {size}")
            text = stream.read(length)
    except OSError as error:
        raise Damaged(f"cannot read {shown}: {error.strerror}", hint="download it again") from error
    header = parse_json(text, f"the header of {shown}")
    _check_metadata(shown, header.pop("__metadata__", {}))
    tensors = sorted(
        (_tensor(file, shown, name, entry, 8 + length) for name, entry in header.items()),
        key=lambda tensor: (tensor.offset, tensor.bytes),
    )
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            raise _damaged(shown, f"the tensor {_quoted(tensor.name)} {kind}")
        end += tensor.bytes
    if end != size:
        raise _damaged(shown, f"its tensors end at byte {end}, the file at {size}")
    return {tensor.name: tensor for tensor in tensors}


def _check_metadata(shown: str, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(shown, "its __metadata__ is not a table of strings")


def _tensor(file: Path, shown: str, name: str, entry: object, start: int) -> TensorInfo:
    """The entry `name` of a header whose tensors' bytes start at `start`, checked on its own."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(shown, f"the entry of {_quoted(name)} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise _damaged(shown, f"the dtype of {_quoted(name)} is not a string")
    if dtype not in DTYPE_BITS:
        raise Unsupported(
            f"the tensor {_quoted(name)} in {shown} has the unknown dtype {_quoted(dtype)}",
            hint="edgekit reads BF16, F16 and F32",
        )
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _damaged(shown, f"the shape of {_quoted(name)} is not a list of at most {MOST_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(shown, f"the data_offsets of {_quoted(name)} are not a start and an end")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits >= _ADDRESSABLE or bits != 8 * (offsets[1] - offsets[0]):
        raise _damaged(
            shown, f"the tensor {_quoted(name)} has {offsets[1] - offsets[0]} bytes, its shape and dtype say otherwise"
        )
    return TensorInfo(name, tuple(shape), dtype, file, start + offsets[0], offsets[1] - offsets[0])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _ADDRESSABLE for item in value
    )


def _quoted(name: str) -> str:
    """A name from the file, shortened and without control characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _damaged(shown: str, reason: str) -> Damaged:
    return Damaged(f"{shown} is damaged: {reason}", hint="download it again")
