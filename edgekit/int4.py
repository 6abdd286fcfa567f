"""Codes for runtimes whose weights are blocks of INT4 times positive scales, as XNNPACK's are: value = scale * code.

3-bit and ternary codes fit as they are, the half steps of q2 as the odd codes -3 to 3 with half the scale. A negative
scale changes its codes' signs, and a group that is longer than a block of the runtime becomes several. All that is
exact; what is not, and is rounded again, is a -8 under a negative scale, and a scale below the smallest normal float16.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import Unsupported
from edgekit.quantize import QuantTensor, widen_bf16

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]

_BLOCKS: Final = (128, 64, 32)
_LOWEST: Final = -8
_HIGHEST: Final = 7
_SMALLEST_SCALE: Final = np.float32(2.0**-14)
_ROWS_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Int4:
    """A matrix (n, k) in codes -8 to 7 [n, k] and positive scales [n, k / block], which float16 and bf16 both hold.

    `rounded` is the share of the blocks whose values are no longer those of the scheme.
    """

    codes: Int8
    scales: Float32
    block: int
    rounded: float


def int4_blocks(tensor: QuantTensor) -> Int4:
    """The matrix in blocks of INT4, of the largest size that its groups and its rows are made of.

    Raises:
        Unsupported: codes of 8 bits or floats, or rows that are no multiple of 32.
    """
    scheme, (n, k) = tensor.scheme, tensor.shape
    if scheme.is_float or scheme.bits > 4:
        raise Unsupported(f"{tensor.name} is {scheme}, which INT4 does not hold", hint="a scheme of 2 to 4 bits")
    block = next((size for size in _BLOCKS if size <= scheme.group and k % size == 0), 0)
    if not block:
        raise Unsupported(
            f"{tensor.name} has rows of {k} weights, and the runtime takes 4 bits in whole blocks of 32",
            hint=f"give it 8 bits: --recipe ...,{tensor.name.removesuffix('.weight')}=q8g32",
        )
    codes = np.empty((n, k), np.int8)
    scales = np.empty((n, k // block), np.float32)
    rounded = 0
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, n))
        codes[rows], scales[rows], again = _positive(tensor, rows, block)
        rounded += again
    return Int4(codes, scales, block, rounded / scales.size)


def _positive(tensor: QuantTensor, rows: slice, block: int) -> tuple[Int8, Float32, int]:
    """Codes and scales of some rows, and how many blocks had to be rounded again."""
    scheme, k = tensor.scheme, tensor.shape[1]
    codes = np.asarray(tensor.codes[rows]).astype(np.int16)
    scales = np.repeat(widen_bf16(tensor.scales[rows]), scheme.group // block, axis=1)[:, : k // block]
    if scheme.offset:
        codes, scales = 2 * codes + 1, scales * np.float32(0.5)
    blocks = codes.reshape(len(codes), -1, block)
    negative = scales < 0
    blocks = np.where(negative[:, :, None], -blocks, blocks)
    scales = np.abs(scales)
    # Of a scale of zero, every value is.
    blocks = np.where(scales[:, :, None] == 0, 0, blocks)
    scales = np.where(scales == 0, np.float32(1), scales)
    again = (blocks.max(-1) > _HIGHEST) | (scales < _SMALLEST_SCALE)
    if again.any():
        blocks[again], scales[again] = _round_again(blocks[again] * scales[again][:, None], scales[again])
    return blocks.reshape(-1, k).astype(np.int8), scales, int(again.sum())


def _round_again(values: Float32, scales: Float32) -> tuple[npt.NDArray[np.int16], Float32]:
    """Codes and scales of blocks of values [blocks, block], by the scale that loses less.

    One is the old one, which cuts the largest weight off, the other the scale by which that is just code 7.
    """
    wide = np.maximum(np.abs(values).max(-1) / np.float32(_HIGHEST), _SMALLEST_SCALE)
    candidates = [np.maximum(scales, _SMALLEST_SCALE), _bf16(wide)]
    rounded = [np.clip(np.rint(values / scale[:, None]), _LOWEST, _HIGHEST) for scale in candidates]
    lost = [((codes * scale[:, None] - values) ** 2).sum(-1) for codes, scale in zip(rounded, candidates, strict=True)]
    first = lost[0] <= lost[1]
    codes = np.where(first[:, None], *rounded).astype(np.int16)
    return codes, np.where(first, *candidates).astype(np.float32)


def _bf16(values: Float32) -> Float32:
    """The values rounded to bf16, ties away from zero."""
    bits: npt.NDArray[Any] = (values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)
