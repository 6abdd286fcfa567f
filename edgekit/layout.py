"""Lay out the tensors of a program one behind the other, in the order of their first use."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.buffers import ALIGN_BYTES
from edgekit.kernels import code_bytes, scale_bytes
from edgekit.passes import packed
from edgekit.scheme import Scheme
from edgekit.units import Bytes


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the program file. Offsets count from the start of the weights.

    A vector has n = 1 and is stored as it is; a matrix (n, k) in tiles of 16 rows, codes and scales apart. `sources`
    are the checkpoint tensors it is joined from, by "rows" or "tiles" (passes/weights.py); none for inv_freq.
    """

    name: str
    scheme: Scheme
    is_vector: bool
    n: int
    k: int
    codes_offset: int
    codes_bytes: Bytes
    scales_offset: int
    scales_bytes: Bytes
    sources: tuple[str, ...]
    join: str


def lay_out(values: Sequence[ir.Value]) -> tuple[tuple[PlannedTensor, ...], dict[ir.Value, int]]:
    """The tensors one behind the other in the order of first use, and the index of each value."""
    tensors: list[PlannedTensor] = []
    for value in values:
        made = packed(value)
        is_vector = len(made.shape) == 1
        n, k = (1, *made.shape)[-2:]
        codes = Bytes(4 * k) if is_vector else code_bytes(made.scheme, n, k)
        scales = Bytes(0) if is_vector else scale_bytes(made.scheme, n, k)
        codes_offset = _aligned(end_of(tensors[-1])) if tensors else 0
        tensors.append(
            PlannedTensor(
                name=str(value.name),
                scheme=made.scheme,
                is_vector=is_vector,
                n=n,
                k=k,
                codes_offset=codes_offset,
                codes_bytes=codes,
                scales_offset=_aligned(codes_offset + codes),
                scales_bytes=scales,
                sources=made.sources,
                join=made.join,
            )
        )
    return tuple(tensors), {value: at for at, value in enumerate(values)}


def end_of(tensor: PlannedTensor) -> int:
    """The first byte behind the tensor."""
    return tensor.scales_offset + tensor.scales_bytes


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN_BYTES) * ALIGN_BYTES
