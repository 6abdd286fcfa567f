"""Codes for runtimes that multiply by XNNPACK, LiteRT and ExecuTorch: 4 bits in blocks, or 8 bits with one scale a row.

Its scales are positive. 3-bit and ternary codes fit INT4 as they are, the half steps of q2 as the odd codes -3 to 3
with half the scale. A negative scale changes its codes' signs, and a group that is longer than a block becomes several.
All that is exact; what is not, and is rounded again, is a -8 under a negative scale, a scale below the smallest normal
float16, and every row of 8 bits whose groups have different scales.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import Unsupported
from edgekit.quantize import QuantGraph, QuantTensor, widen_bf16
from edgekit.scheme import GROUPS, Scheme

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
UInt16 = npt.NDArray[np.uint16]

_LOWEST: Final = -8
_HIGHEST: Final = 7
_MOST_OF_EIGHT: Final = np.float32(127)
_SMALLEST_SCALE: Final = np.float32(2.0**-14)
_ROWS_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Suited:
    """A quantized graph with codes as XNNPACK takes them, and what was rounded again, for the person.

    `schemes` are the recipe's still. A matrix of 4 bits has the scheme of its blocks, one of 8 bits is q8g128 with the
    same scale throughout a row.
    """

    quant: QuantGraph
    notes: tuple[str, ...]


def check_rows(quant: QuantGraph) -> None:
    """Nothing, if XNNPACK takes every matrix in 4 bits that has them or fewer. Schemes and shapes tell.

    Raises:
        Unsupported: rows that are no multiple of 32.
    """
    shapes, least = quant.graph.decoder.tensor_shapes(), min(GROUPS)
    refused = [name for name, scheme in quant.schemes.items() if scheme.bits < 8 and shapes[name][1] % least]
    if refused:
        which = f"{refused[0]} has" if len(refused) == 1 else f"{refused[0]} and {len(refused) - 1} others have"
        raise Unsupported(
            f"{which} rows that are no multiple of {least}, and XNNPACK takes 4 bits in whole blocks of {least}",
            hint="give them 8 bits, for example --recipe q8g32",
        )


def suit_xnnpack(quant: QuantGraph, *, four_bits: bool = True) -> Suited:
    """The graph in codes that XNNPACK takes, those of fewer than 8 bits in INT4 or, without `four_bits`, in 8 bits.

    Raises:
        Unsupported: rows that are no multiple of 32, in 4 bits.
    """
    if four_bits:
        check_rows(quant)
    tensors, rounded, blocks, rows = {}, 0, 0, 0
    for name, tensor in quant.tensors.items():
        if tensor.scheme.is_float:
            tensors[name] = tensor
        elif tensor.scheme.bits == 8 or not four_bits:
            tensors[name], is_exact = in_rows(tensor)
            rows += not is_exact
        else:
            tensors[name], again = in_blocks(tensor)
            rounded, blocks = rounded + again, blocks + tensors[name].scales.size
    notes = []
    if rows:
        notes.append(f"{rows} matrices are rounded again to 8 bits with one scale a row, for XNNPACK has no more")
    if rounded:
        notes.append(f"{rounded / blocks:.1%} of the 4-bit blocks are rounded again: XNNPACK has positive scales only")
    return Suited(replace(quant, tensors=tensors), tuple(notes))


def in_blocks(tensor: QuantTensor) -> tuple[QuantTensor, int]:
    """The matrix in 4 bits with positive scales, and how many of its blocks were rounded again.

    A block is the largest of 128, 64 and 32 weights that groups and rows are made of; rows are a multiple of 32.
    float16 holds the scales exactly.
    """
    scheme, (n, k) = tensor.scheme, tensor.shape
    block = next(size for size in sorted(GROUPS, reverse=True) if size <= scheme.group and k % size == 0)
    codes = np.empty((n, k), np.int8)
    scales = np.empty((n, k // block), np.float32)
    rounded = 0
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, n))
        codes[rows], scales[rows], again = _positive(tensor, rows, block)
        rounded += again
    return QuantTensor(tensor.name, Scheme("q4", block), (n, k), codes, _bits(scales)), rounded


def in_rows(tensor: QuantTensor) -> tuple[QuantTensor, bool]:
    """The matrix in 8 bits with one positive scale a row, and if its values are the same."""
    n, k = tensor.shape
    scheme = Scheme("q8", max(GROUPS))
    codes = np.empty((n, k), np.int8)
    scales = np.empty(n, np.float32)
    is_exact = True
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, n))
        values = tensor.values(rows.start, rows.stop)
        scales[rows] = _row_scales(tensor, rows, values)
        codes[rows] = np.clip(np.rint(values / scales[rows, None]), -_MOST_OF_EIGHT, _MOST_OF_EIGHT)
        is_exact = is_exact and bool(np.array_equal(codes[rows] * scales[rows, None], values))
    repeated = np.repeat(_bits(scales)[:, None], scheme.groups(k), axis=1)
    return QuantTensor(tensor.name, scheme, (n, k), codes, repeated), is_exact


def row_scales(tensor: QuantTensor) -> Float32:
    """The scale of every row of what `in_rows` made."""
    return widen_bf16(tensor.scales[:, 0])


def _row_scales(tensor: QuantTensor, rows: slice, values: Float32) -> Float32:
    """A row's own scale if it has but one group or all are the same, else the one that makes its largest weight 127."""
    groups = np.abs(widen_bf16(tensor.scales[rows]))
    # Rounding down would put the largest weight beyond the largest code.
    fitted = _bf16_up(np.abs(values).max(1) / _MOST_OF_EIGHT)
    made = np.where((groups == groups[:, :1]).all(1) & (tensor.scheme.offset == 0), groups[:, 0], fitted)
    return np.where(made == 0, np.float32(1), made)


def _positive(tensor: QuantTensor, rows: slice, block: int) -> tuple[Int8, Float32, int]:
    """Codes and scales of some rows, and how many blocks had to be rounded again."""
    scheme, k = tensor.scheme, tensor.shape[1]
    codes = np.asarray(tensor.codes[rows]).astype(np.int16)
    scales = np.repeat(widen_bf16(tensor.scales[rows]), scheme.group // block, axis=1)[:, : k // block]
    if scheme.offset:
        codes, scales = 2 * codes + 1, scales * np.float32(0.5)
    blocks = codes.reshape(len(codes), -1, block)
    blocks = np.where(scales[:, :, None] < 0, -blocks, blocks)
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
    candidates = [np.maximum(scales, _SMALLEST_SCALE), _bf16_up(wide)]
    rounded = [np.clip(np.rint(values / scale[:, None]), _LOWEST, _HIGHEST) for scale in candidates]
    lost = [((codes * scale[:, None] - values) ** 2).sum(-1) for codes, scale in zip(rounded, candidates, strict=True)]
    first = lost[0] <= lost[1]
    codes = np.where(first[:, None], *rounded).astype(np.int16)
    return codes, np.where(first, *candidates).astype(np.float32)


def _bf16_up(values: Float32) -> Float32:
    """The positive values rounded up to bf16."""
    return widen_bf16(_bits((values.view(np.uint32) + np.uint32(0xFFFF)).view(np.float32)))


def _bits(values: Float32) -> UInt16:
    """The bf16 bits of values that are bf16 already, or cut off."""
    bits: npt.NDArray[Any] = values.view(np.uint32) >> np.uint32(16)
    return bits.astype(np.uint16)
