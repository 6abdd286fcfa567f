"""Write the program file `model.edge` that edgekit-run executes: the plan's tables and the packed weights.

The layout is kernels/program/format.h. Weights are packed and written a few rows at a time, so memory does not grow
with the model, and the same plan and codes give the same bytes.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs import Decoder
from edgekit.disk import writing
from edgekit.errors import DoesNotFit
from edgekit.kernels import FORMATS, TILE, pack_codes, pack_scales
from edgekit.layout import PlannedTensor
from edgekit.plan import Plan, PlannedOperator
from edgekit.quantize import QuantGraph
from edgekit.special_tokens import MOST_EOS_IDS

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]  # bytes of weights written, bytes in all

MAGIC: Final = b"edgekit\0"
VERSION: Final = 1
NONE: Final = 0xFFFFFFFF
PAGE_BYTES: Final = 65536
ALIGN_BYTES: Final = 64

HEADER: Final = struct.Struct("<8sIIQII28xI")
SECTION: Final = struct.Struct("<IIQQ8x")
CONFIG: Final = struct.Struct("<13I8IIQI28x")
OPERATOR: Final = struct.Struct("<17I3f16x")
TENSOR: Final = struct.Struct("<5I4x4Q8x")
BUFFER: Final = struct.Struct("<IIQ")
KERNEL_NAME: Final = struct.Struct("64s")

SECTION_KINDS: Final = {
    "config": 1, "operators": 2, "tensors": 3, "buffers": 4, "kernels": 5, "tokenizer": 6, "probe": 7, "weights": 8,
}  # fmt: skip
OPERATOR_KINDS: Final = {
    "Embed": 1, "NormLinear": 2, "Attention": 3, "LinearAdd": 4, "NormGatedLinear": 5, "Head": 6,
}  # fmt: skip

_KV_CODES: Final = {"f16": 0, "q8": 1}

# Codes packed at once: 8 MiB, and as much again for the packed form.
_BLOCK_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Extras:
    """What a program carries besides the model: the packed tokenizer, the probe (may be empty), the special ids."""

    tokenizer: bytes
    probe: bytes
    bos: int | None
    eos: tuple[int, ...]


def write_program(
    plan: Plan, quant: QuantGraph, extras: Extras, path: Path, *, progress: Progress | None = None
) -> None:
    """Writes `plan` with the codes and scales of `quant` to the new file `path`.

    Raises:
        DoesNotFit: more end-of-text ids than the file has room for.
    """
    decoder = quant.graph.decoder
    if len(extras.eos) > MOST_EOS_IDS:
        raise DoesNotFit(f"the model ends a text with {len(extras.eos)} tokens; a program has room for {MOST_EOS_IDS}")
    sections = [
        ("config", _config(plan, decoder, extras)),
        ("operators", b"".join(_operator(plan, operator) for operator in plan.operators)),
        ("tensors", b"".join(map(_tensor, plan.tensors))),
        ("buffers", b"".join(BUFFER.pack(b.width, plan.max_rows, b.offset) for b in plan.buffers)),
        ("kernels", b"".join(KERNEL_NAME.pack(name.encode()) for name in plan.kernels)),
        ("tokenizer", extras.tokenizer),
        ("probe", extras.probe),
    ]
    sections = [(name, data) for name, data in sections if data]
    offset = HEADER.size + SECTION.size * (len(sections) + 1)
    table = []
    with writing(path), path.open("xb") as file:
        for name, data in sections:
            offset = _aligned(offset, ALIGN_BYTES)
            _pad_to(file, offset)
            file.write(data)
            table.append(SECTION.pack(SECTION_KINDS[name], zlib.crc32(data), offset, len(data)))
            offset += len(data)
        offset = _aligned(offset, PAGE_BYTES)
        _pad_to(file, offset)
        crc = _write_weights(file, plan, quant, progress)
        table.append(SECTION.pack(SECTION_KINDS["weights"], crc, offset, plan.weights_bytes))
        file.seek(0)
        file.write(_header(b"".join(table), offset + plan.weights_bytes))


def _header(table: bytes, file_bytes: int) -> bytes:
    count = len(table) // SECTION.size
    fields = (MAGIC, VERSION, HEADER.size, file_bytes, count, zlib.crc32(table))
    checked = HEADER.pack(*fields, 0)[:-4]
    return HEADER.pack(*fields, zlib.crc32(checked)) + table


def _config(plan: Plan, decoder: Decoder, extras: Extras) -> bytes:
    eos = [*extras.eos, *[0] * (MOST_EOS_IDS - len(extras.eos))]
    sizes = (decoder.layers, decoder.hidden, decoder.heads, decoder.kv_heads, decoder.head_dim)
    return CONFIG.pack(
        *sizes,
        decoder.intermediate,
        decoder.vocab,
        decoder.context,
        plan.max_rows,
        plan.decode_threads,
        plan.prefill_threads,
        _index(extras.bos),
        len(extras.eos),
        *eos,
        plan.arena_bytes,
        plan.required_features,
        _KV_CODES[plan.kv],
    )


def _operator(plan: Plan, operator: PlannedOperator) -> bytes:
    weights: list[int | None] = [product.weight for product in operator.products]
    if operator.table is not None:
        weights = [operator.table]
    biases = [product.bias for product in operator.products]
    # An operator names one kernel for each phase; products of another format than the first take their best at load.
    first = operator.products[0] if operator.products else None
    return OPERATOR.pack(
        OPERATOR_KINDS[operator.kind],
        operator.layer,
        _index(operator.input),
        _index(operator.output),
        _index(operator.norm),
        *_three(weights),
        *_three(biases),
        _index(operator.q_norm),
        _index(operator.k_norm),
        _index(operator.rope),
        NONE if first is None else plan.kernels.index(first.decode.kernel.name),
        NONE if first is None else plan.kernels.index(first.prefill.kernel.name),
        operator.window,
        operator.eps,
        operator.scale,
        operator.rope_scale,
    )


def _three(indices: Sequence[int | None]) -> list[int]:
    return [_index(index) for index in [*indices, None, None, None][:3]]


def _index(index: int | None) -> int:
    return NONE if index is None else index


def _tensor(tensor: PlannedTensor) -> bytes:
    return TENSOR.pack(
        FORMATS[tensor.scheme.format],
        0 if tensor.is_vector else 1,
        tensor.scheme.group,
        tensor.n,
        tensor.k,
        tensor.codes_offset,
        tensor.codes_bytes,
        tensor.scales_offset,
        tensor.scales_bytes,
    )


def _write_weights(file: BinaryIO, plan: Plan, quant: QuantGraph, progress: Progress | None) -> int:
    """Writes every tensor at its offset, zeros between them, and gives the CRC-32 of it all."""
    crc = written = 0
    for tensor in plan.tensors:
        streams = ((tensor.codes_offset, _codes(tensor, quant)), (tensor.scales_offset, _scales(tensor, quant)))
        for offset, chunks in streams:
            for chunk in _padded(offset - written, chunks):
                file.write(chunk)
                crc = zlib.crc32(chunk, crc)
                written += len(chunk)
                if progress is not None:
                    progress(written, plan.weights_bytes)
    assert written == plan.weights_bytes, "the plan and the weights disagree"
    return crc


def _padded(gap: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if gap:
        yield bytes(gap)
    yield from chunks


def _codes(tensor: PlannedTensor, quant: QuantGraph) -> Iterator[bytes]:
    if tensor.is_vector:
        yield _vector(tensor, quant).tobytes()
        return
    rows = _rows_at_once(tensor)
    for start in range(0, tensor.n, rows):
        codes = _rows([quant.tensors[name].codes for name in tensor.sources], tensor.join, start, rows)
        yield pack_codes(tensor.scheme, codes).tobytes()


def _scales(tensor: PlannedTensor, quant: QuantGraph) -> Iterator[bytes]:
    if tensor.scales_bytes:
        rows = _rows_at_once(tensor)
        for start in range(0, tensor.n, rows):
            scales = _rows([quant.tensors[name].scales for name in tensor.sources], tensor.join, start, rows)
            yield pack_scales(scales).tobytes()


def _rows_at_once(tensor: PlannedTensor) -> int:
    """Whole tiles of every source, so that blocks of both ways of joining begin with a new tile."""
    unit = TILE * len(tensor.sources)
    row_bytes = tensor.k * (tensor.scheme.bits if tensor.scheme.is_float else 8) // 8
    return max(unit, _BLOCK_BYTES // row_bytes // unit * unit)


def _rows(sources: Sequence[Array], join: str, start: int, count: int) -> Array:
    """Rows [start, start + count) of `sources` joined, fewer at the end of "rows"; "tiles" ends in whole tiles."""
    if join == "tiles":
        first, per_source = start // len(sources), count // len(sources)
        blocks = [_whole_tiles(source[first : first + per_source]) for source in sources]
        tiles = [block.reshape(-1, TILE, block.shape[1]) for block in blocks]
        return np.stack(tiles, axis=1).reshape(-1, tiles[0].shape[2])
    taken = []
    for source in sources:
        taken.append(source[max(start, 0) : max(start + count, 0)])
        start -= source.shape[0]
    return np.concatenate(taken)


def _whole_tiles(rows: Array) -> Array:
    missing = -rows.shape[0] % TILE
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _vector(tensor: PlannedTensor, quant: QuantGraph) -> Array:
    if not tensor.sources:
        return np.array(quant.graph.decoder.inv_freq, "<f4")
    vectors = [quant.vectors[name].astype("<f4").reshape(-1, 1) for name in tensor.sources]
    length = sum(-(-len(vector) // TILE) * TILE if tensor.join == "tiles" else len(vector) for vector in vectors)
    return _rows(vectors, tensor.join, 0, length).reshape(-1)


def _aligned(offset: int, unit: int) -> int:
    return -(-offset // unit) * unit


def _pad_to(file: BinaryIO, offset: int) -> None:
    file.write(bytes(offset - file.tell()))
