"""What a GGUF file holds and where, after every promise of the format has been checked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. Files come from
strangers: every count is held against the bytes that are left before anything is made of it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

import numpy as np

from edgekit.errors import Damaged, Unsupported

VERSION: Final = 3
MOST_HEADER_BYTES: Final = 256 << 20  # vocabularies of the largest published models take 20 MB
_MOST_ALIGNMENT: Final = 1 << 16
_MOST_DIMENSIONS: Final = 4
_MOST_NAME_BYTES: Final = 1 << 16
_ADDRESSABLE: Final = 1 << 62

_NUMBERS: Final = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9

# Kind of a tensor -> values in a block, bytes of a block.
BLOCKS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q8_0": (32, 34)}
)
_KINDS: Final = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 30: "BF16"}
_OTHER_KINDS: Final = {3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"} | {
    10 + at: f"{kind}_K" for at, kind in enumerate(("Q2", "Q3", "Q4", "Q5", "Q6", "Q8"))
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`bytes` bytes of blocks of `kind` from `offset` of the file on; `shape` has the rows first."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A GGUF file's metadata (numbers, strings, booleans, and lists of those) and tensors."""

    file: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]


def read_gguf(file: Path, shown: str) -> Gguf:
    """The header of `file`, which messages call `shown`.

    Raises:
        Damaged: the file breaks a promise of the format.
        Unsupported: another version, or a kind of tensor that no scheme holds.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            return _Reader(stream, file, shown, size).read()
    except OSError as error:
        raise Damaged(f"cannot read {shown}: {error.strerror}", hint="download it again") from error


class _Reader:
    """Reads a header from its start to its end, never past `limit`."""

    def __init__(self, stream: BinaryIO, file: Path, shown: str, size: int) -> None:
        self.stream = stream
        self.file = file
        self.shown = shown
        self.size = size
        self.position = 0
        self.limit = min(size, MOST_HEADER_BYTES)

    def read(self) -> Gguf:
        if self.take(4) != b"GGUF":
            raise self.damaged("it does not begin with 'GGUF'")
        version = self.integer()
        if version != VERSION:
            raise Unsupported(
                f"{self.shown} is GGUF version {version if version < 1 << 16 else 'of a big-endian machine'}",
                hint=f"edgekit reads version {VERSION}, little-endian: convert the model again with a newer llama.cpp",
            )
        tensor_count, entry_count = struct.unpack("<QQ", self.take(16))
        # The shortest entry has a length, a type and a value; the shortest tensor a length, a count, a size, a kind
        # and an offset.
        self.check_count(entry_count, 8 + 4 + 1, "entries of metadata")
        metadata: dict[str, object] = {}
        for _ in range(entry_count):
            key = self.string(_MOST_NAME_BYTES)
            if key in metadata:
                raise self.damaged(f"the key {key!r:.80} appears twice")
            metadata[key] = self.value(self.integer())
        self.check_count(tensor_count, 8 + 4 + 8 + 4 + 8, "tensors")
        tensors = [self.tensor() for _ in range(tensor_count)]
        return Gguf(self.file, metadata, self.located(tensors, self.alignment(metadata)))

    def tensor(self) -> GgufTensor:
        """An entry of the table of tensors; its offset counts from the start of the data."""
        name = self.string(_MOST_NAME_BYTES)
        dimensions = self.integer()
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {name!r:.80} has {dimensions} dimensions")
        sizes = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        number, offset = struct.unpack("<IQ", self.take(12))
        kind = _KINDS.get(number)
        if kind is None:
            raise Unsupported(
                f"the tensor {name!r:.80} in {self.shown} is {_OTHER_KINDS.get(number, f'of kind {number}')}, which no"
                " scheme of edgekit holds",
                hint=f"edgekit reads {', '.join(BLOCKS)}: llama-quantize --pure model-f16.gguf OUT.gguf Q4_0 (or Q8_0)",
            )
        values, block_bytes = BLOCKS[kind]
        count = 1
        for extent in sizes:
            count *= extent
        if not 0 < count < _ADDRESSABLE or sizes[0] % values:
            raise self.damaged(f"the tensor {name!r:.80} has the sizes {list(sizes)}")
        return GgufTensor(name, sizes[::-1], kind, offset, count // values * block_bytes)

    def alignment(self, metadata: Mapping[str, object]) -> int:
        value = metadata.get("general.alignment", 32)
        if not isinstance(value, int) or not 8 <= value <= _MOST_ALIGNMENT or value & (value - 1):
            raise self.damaged(f"general.alignment is {value!r:.40}")
        return value

    def located(self, tensors: list[GgufTensor], alignment: int) -> dict[str, GgufTensor]:
        """The tensors by name, in the order of their bytes and with offsets from the start of the file."""

        def padded(position: int) -> int:
            return -(-position // alignment) * alignment

        start = end = padded(self.position)
        found: dict[str, GgufTensor] = {}
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.name in found:
                raise self.damaged(f"the tensor {tensor.name!r:.80} appears twice")
            if start + tensor.offset != padded(end):
                raise self.damaged(f"the tensor {tensor.name!r:.80} does not follow the one before it")
            end = start + tensor.offset + tensor.bytes
            if end > self.size:
                raise self.damaged(f"the tensor {tensor.name!r:.80} ends at byte {end}, the file at {self.size}")
            found[tensor.name] = GgufTensor(tensor.name, tensor.shape, tensor.kind, start + tensor.offset, tensor.bytes)
        if self.size > padded(end):
            raise self.damaged(f"its tensors end at byte {end}, the file at {self.size}")
        return found

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind == _BOOL:
            return self.booleans(1)[0]
        if kind == _ARRAY:
            return self.array()
        return self.number(self.number_type(kind))

    def array(self) -> list[object]:
        kind, count = struct.unpack("<IQ", self.take(12))
        if kind == _STRING:
            self.check_count(count, 8, "strings")
            return [self.string() for _ in range(count)]
        if kind == _BOOL:
            self.check_count(count, 1, "booleans")
            return list(self.booleans(count))
        dtype = np.dtype(self.number_type(kind))
        self.check_count(count, dtype.itemsize, "numbers")
        numbers: list[object] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return numbers

    def number_type(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise self.damaged(f"a value has the type {kind}")
        return _NUMBERS[kind]

    def number(self, dtype: str) -> int | float:
        value: int | float = np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()
        return value

    def integer(self) -> int:
        """A count or a type of 32 bits."""
        (value,) = struct.unpack("<I", self.take(4))
        return int(value)

    def booleans(self, count: int) -> list[bool]:
        stored = self.take(count)
        if stored.strip(b"\0\1"):
            raise self.damaged("a boolean is neither 0 nor 1")
        return [bool(byte) for byte in stored]

    def string(self, limit: int = MOST_HEADER_BYTES) -> str:
        (length,) = struct.unpack("<Q", self.take(8))
        if length > limit:
            raise self.damaged(f"a string would take {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a string is not UTF-8") from None

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > self.limit - self.position:
            raise self.damaged(f"{count} {what} would take more than the {self.limit - self.position} bytes left")

    def take(self, count: int) -> bytes:
        if count > self.limit - self.position:
            raise self.damaged(f"its header goes past byte {self.limit}")
        taken = self.stream.read(count)
        if len(taken) != count:
            raise self.damaged("it became shorter while it was read")
        self.position += count
        return taken

    def damaged(self, reason: str) -> Damaged:
        return Damaged(f"{self.shown} is damaged: {reason}", hint="download it again")
