"""AWQ as AutoAWQ writes it for its GEMM kernels: a matrix (n, k) in these tensors.

qweight [k, n / 8]       int32; eight columns a word, their nibbles in the order below
qzeros  [groups, n / 8]  int32; zero points of a group, likewise
scales  [groups, n]      f16
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs.config import Config
from edgekit.errors import Unsupported
from edgekit.packed import Float32, Packed
from edgekit.packings import UInt32, group_size, part, read_scales, read_words, unpack, words
from edgekit.safetensors import TensorInfo
from edgekit.tensor_files import FLOATS

_BITS: Final = 4
# Of a word's eight nibbles, lowest first: the column that each holds.
_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)


def check(config: Config) -> None:
    """Nothing, if every matrix is packed as above."""
    if (bits := config.integer("bits", high=32)) != _BITS:
        raise Unsupported(f"AWQ with {bits} bits is not supported", hint="4")
    config.refuse_unless("version", ("gemm", "GEMM"), default="gemm")
    if not config.boolean("zero_point", default=True):
        raise Unsupported("AWQ without zero points is not supported", hint="zero_point: true")


def packed(config: Config, name: str, shape: tuple[int, int], parts: Mapping[str, TensorInfo]) -> Packed:
    """The matrix `name` (n, k) in its tensors."""
    n, k = shape
    group = group_size(config, k)
    groups = -(-k // group)
    return _Awq(
        name=name,
        shape=shape,
        dtype="AWQ-4",
        bytes=sum(info.bytes for info in parts.values()),
        bits=_BITS,
        group=group,
        qweight=part(parts, name, "qweight", words(name, (k, n), _BITS), ("I32",)),
        qzeros=part(parts, name, "qzeros", words(name, (groups, n), _BITS), ("I32",)),
        scales=part(parts, name, "scales", (groups, n), FLOATS),
    )


@dataclass(frozen=True, eq=False)
class _Awq(Packed):
    qweight: TensorInfo
    qzeros: TensorInfo
    scales: TensorInfo

    def rows(self, start: int, stop: int) -> tuple[npt.NDArray[Any], Float32]:
        codes, scales = _whole(self)
        return codes[start:stop], scales[start:stop]

    @functools.cached_property
    def zeros(self) -> npt.NDArray[np.int8]:
        """Zero points [groups, n]."""
        return _unpack(read_words(self.qzeros))

    @functools.cached_property
    def code_range(self) -> tuple[int, int]:
        return -int(self.zeros.max()), (1 << _BITS) - 1 - int(self.zeros.min())


@functools.lru_cache(maxsize=1)  # a matrix is read in blocks of rows, and lies in the file by columns
def _whole(matrix: _Awq) -> tuple[npt.NDArray[Any], Float32]:
    """Codes [n, k] and scales [n, groups]."""
    codes = np.ascontiguousarray(_unpack(read_words(matrix.qweight)).T)
    for group, zeros in enumerate(matrix.zeros):
        codes[:, group * matrix.group : (group + 1) * matrix.group] -= zeros[:, None]
    return codes, np.ascontiguousarray(read_scales(matrix.scales).T)


def _unpack(packed: UInt32) -> npt.NDArray[np.int8]:
    nibbles = unpack(packed, _BITS).view(np.int8).reshape(len(packed), -1, 8)
    columns = np.empty_like(nibbles)
    columns[:, :, _ORDER] = nibbles
    return columns.reshape(len(packed), -1)
