"""GPTQ as AutoGPTQ and GPTQModel write it: a matrix (n, k) in these tensors.

qweight [k * bits / 32, n]       int32; codes of a column in one run of bits, lowest first
qzeros  [groups, n * bits / 32]  int32; zero points of a group likewise, less 1 in the first version of the format
scales  [groups, n]              f16
g_idx   [k]                      int32; the group of each row of qweight; in no order with desc_act
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs.config import Config
from edgekit.errors import Damaged, Unsupported, one_of
from edgekit.packed import Float32, Int64, Packed
from edgekit.packings import group_size, part, read_scales, read_words, unpack, words
from edgekit.safetensors import TensorInfo
from edgekit.tensor_files import FLOATS

_BITS: Final = (2, 3, 4, 8)


def check(config: Config) -> None:
    """Nothing, if every matrix is packed as above."""
    if (bits := config.integer("bits", high=32)) not in _BITS:
        raise Unsupported(f"GPTQ with {bits} bits is not supported", hint=one_of(_BITS))
    config.refuse_unless("checkpoint_format", ("gptq", "gptq_v2"), default="gptq")
    config.refuse_unless("pack_dtype", ("int32",), default="int32")
    if any(not pattern.startswith("-:") for pattern in config.table("dynamic").values):
        raise Unsupported(
            "GPTQ with other bits or groups for some layers (dynamic) is not supported",
            hint="quantize every layer alike, or leave some out with '-:'",
        )


def packed(config: Config, name: str, shape: tuple[int, int], parts: Mapping[str, TensorInfo]) -> Packed:
    """The matrix `name` (n, k) in its tensors."""
    n, k = shape
    bits, group = config.integer("bits", high=8), group_size(config, k)
    groups = -(-k // group)
    g_idx = None
    if "g_idx" in parts:
        g_idx = part(parts, name, "g_idx", (k,), ("I32",))
    elif config.boolean("desc_act", default=False):
        raise Damaged(f"the weights hold no g_idx of '{name}', which desc_act calls for", hint="download it again")
    first_version = config.text("checkpoint_format", default="gptq") == "gptq"
    return _Gptq(
        name=name,
        shape=shape,
        dtype=f"GPTQ-{bits}",
        bytes=sum(info.bytes for info in parts.values()),
        bits=bits,
        group=group,
        qweight=part(parts, name, "qweight", words(name, (n, k), bits)[::-1], ("I32",)),
        qzeros=part(parts, name, "qzeros", words(name, (groups, n), bits), ("I32",)),
        scales=part(parts, name, "scales", (groups, n), FLOATS),
        g_idx=g_idx,
        less=int(first_version),
    )


@dataclass(frozen=True, eq=False)
class _Gptq(Packed):
    """`less` is what the file takes off every zero point."""

    qweight: TensorInfo
    qzeros: TensorInfo
    scales: TensorInfo
    g_idx: TensorInfo | None
    less: int

    def rows(self, start: int, stop: int) -> tuple[npt.NDArray[Any], Float32]:
        codes, scales = _whole(self)
        return codes[start:stop], scales[start:stop]

    @functools.cached_property
    def zeros(self) -> npt.NDArray[np.int16]:
        """Zero points [groups, n]."""
        stored = unpack(read_words(self.qzeros), self.bits).astype(np.int16)
        return (stored + np.int16(self.less)) & np.int16((1 << self.bits) - 1)

    @functools.cached_property
    def code_range(self) -> tuple[int, int]:
        return -int(self.zeros.max()), (1 << self.bits) - 1 - int(self.zeros.min())

    @functools.cached_property
    def columns(self) -> Int64:
        if self.g_idx is None:
            return np.arange(self.shape[1], dtype=np.int64) // self.group
        columns = read_words(self.g_idx).astype(np.int64)
        if columns.max() >= self.scales.shape[0]:
            raise Damaged(f"g_idx of {self.name} names a group that is not there", hint="download it again")
        return columns


@functools.lru_cache(maxsize=1)  # a matrix is read in blocks of rows, and lies in the file by columns
def _whole(matrix: _Gptq) -> tuple[npt.NDArray[Any], Float32]:
    """Codes [n, k] and scales [n, groups]."""
    n, k = matrix.shape
    codes = np.empty((n, k), np.int16 if matrix.bits == 8 else np.int8)
    codes[:] = unpack(np.ascontiguousarray(read_words(matrix.qweight).T), matrix.bits)
    for group, zeros in enumerate(matrix.zeros):
        codes[:, matrix.columns == group] -= zeros.astype(codes.dtype)[:, None]
    return codes, np.ascontiguousarray(read_scales(matrix.scales).T)
