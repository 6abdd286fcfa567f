"""The catalogue of compiled kernels and the only bridge to the C++ library: packing, quantizing, measuring.

The catalogue lists every kernel of every architecture, so that a plan for an Arm board is the same whatever machine
makes it; `runs_here` says which of them this machine's library contains.
"""

import importlib
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import TargetMissing
from edgekit.scheme import Scheme
from edgekit.units import Bytes

if TYPE_CHECKING:
    from edgekit import _kernels
else:

    class _Kernels:
        """The compiled module, imported when first asked: what only runs models needs none, on an emulated board."""

        def __getattr__(self, name: str) -> object:
            try:
                return getattr(importlib.import_module("edgekit._kernels"), name)
            except ImportError as error:
                raise TargetMissing(
                    f"edgekit's kernels cannot be loaded: {error}", hint="install edgekit for this Python"
                ) from error

    _kernels = _Kernels()

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
UInt16 = npt.NDArray[np.uint16]

TILE = 16
# Numbers of edgekit_format (edgekit/gemm.h), stored in program files.
FORMATS = {"f32": 0, "f16": 1, "q8": 2, "q4": 3, "q3": 4, "q2": 5, "t2": 6}
_NAMES = {number: name for name, number in FORMATS.items()}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of kernels.inc. `weights` is a scheme's format, `rows` what it is made for: 1 to decode, else many."""

    name: str
    weights: str
    rows: int
    features: int
    runs_here: bool

    @property
    def isa(self) -> str:
        """The ISA word: what follows the tile in gemm_<activations>_<weights>_<result>_<tile>_<isa>."""
        return self.name.split("_", 5)[5]


@cache
def catalogue() -> tuple[Kernel, ...]:
    """Every kernel, the best first for each format of weights and class of rows."""
    return tuple(
        Kernel(name, _NAMES[weights], rows, features, compiled)
        for name, weights, rows, features, compiled in _kernels.catalogue()
    )


def cpu_features() -> int:
    """What this CPU and its operating system support, as bits of edgekit/cpu.h; EDGEKIT_ISA lowers it."""
    return int(_kernels.cpu_features())


def code_bytes(scheme: Scheme, n: int, k: int) -> Bytes:
    """Bytes of the packed codes of an (n, k) matrix: whole tiles of 16 rows."""
    return Bytes(-(-n // TILE) * _kernels.tile_code_bytes(FORMATS[scheme.format], k))


def scale_bytes(scheme: Scheme, n: int, k: int) -> Bytes:
    """Bytes of the packed scales of an (n, k) matrix; none for floats."""
    if scheme.is_float:
        return Bytes(0)
    return Bytes(-(-n // TILE) * _kernels.tile_scale_bytes(FORMATS[scheme.format], k, scheme.group))


def pack_codes(scheme: Scheme, codes: Array, *, threads: int = 0) -> UInt8:
    """Codes [n, k] (int8; for float schemes the values) in tiles: uint8 [tiles, bytes of a tile]."""
    number = FORMATS[scheme.format]
    bits = codes.view(np.uint16) if scheme.format == "f16" else codes
    return _kernels.pack_codes(number, np.ascontiguousarray(bits), _threads(threads))


def pack_scales(scales: UInt16) -> UInt16:
    """Scales [n, groups] in tiles: uint16 [tiles, groups * 16]."""
    return _kernels.pack_scales(np.ascontiguousarray(scales))


def unpack(scheme: Scheme, n: int, k: int, codes: UInt8, scales: UInt16) -> Float32:
    """The values [n, k] of packed codes and scales."""
    return _kernels.unpack(FORMATS[scheme.format], n, k, scheme.group, codes, scales)


def quantize_weights(
    scheme: Scheme, weights: Float32, *, importance: Float32 | None = None, steps: int = 16, threads: int = 0
) -> tuple[Int8, UInt16]:
    """Codes [n, k] and bf16 scales [n, groups] of the least squared error among `steps` scales tried a group.

    `importance` [k] weighs the error of each column. Rows are shared out to `threads` (0: all); the result does not
    depend on how many, and Python code runs meanwhile.
    """
    assert not scheme.is_float
    return _kernels.quantize_weights(
        FORMATS[scheme.format],
        np.ascontiguousarray(weights, dtype=np.float32),
        scheme.group,
        steps,
        None if importance is None else np.ascontiguousarray(importance, dtype=np.float32),
        _threads(threads),
    )


def gemm(name: str, scheme: Scheme, activations: Float32, codes: UInt8, scales: UInt16, *, n: int) -> Float32:
    """Activations [m, k] times packed weights (n, k), transposed, by the kernel `name`: float32 [m, n]. For tests.

    Raises:
        ValueError: no such kernel, one this CPU cannot run, or sizes that do not agree.
    """
    return _kernels.gemm(name, np.ascontiguousarray(activations, np.float32), n, scheme.group, codes, scales)


def read_ceiling(threads: int, *, size: Bytes, rounds: int = 3) -> float:
    """Bytes a second that `threads` threads of this machine read from `size` bytes: the median of `rounds` passes."""
    return float(_kernels.read_ceiling(threads, int(size), rounds))


def _threads(wanted: int) -> int:
    return wanted or len(os.sched_getaffinity(0))
