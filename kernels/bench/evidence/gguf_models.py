"""GGUF files with random weights, which llama.cpp reads like any other.

Block layouts: ggml-common.h of llama.cpp. Codes are random; scales are set, so that no value overflows or is subnormal.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evidence.shapes import CONTEXT, Shape

_SCALE: Final = np.float16(0.003)  # times codes and block scales of up to 63: rows of length about one


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block of quantized weights. `ternary_bytes` at its beginning hold four codes of 0, 1 or 2 each."""

    weights: int
    data_bytes: int
    scale_at: tuple[int, ...]  # byte offsets of the float16 scales in the block
    ternary_bytes: int = 0


BLOCKS: Final = {
    "Q4_0": BlockFormat(32, 18, (0,)),
    "Q2_K": BlockFormat(256, 84, (80, 82)),
    "Q3_K": BlockFormat(256, 110, (108,)),
    "TQ2_0": BlockFormat(256, 66, (64,), ternary_bytes=64),
}


def used_format(name: str, k: int) -> str:
    """`name`, or Q4_0 where its blocks do not divide a row of k."""
    return name if k % BLOCKS[name].weights == 0 else "Q4_0"


def bytes_per_token(shape: Shape, name: str) -> int:
    """Bytes of weights that a decoded token reads: every matrix but an embedding that is not the head, too."""
    read = 0
    for tensor, (n, k) in shape.matrices().items():
        if tensor == "token_embd.weight" and not shape.tied:
            continue
        block = BLOCKS[used_format(name, k)]
        read += n * (k // block.weights) * block.data_bytes
    return read


def random_blocks(rng: np.random.Generator, block: BlockFormat, n: int, k: int) -> npt.NDArray[np.uint8]:
    """Random quantized weights of an (n, k) matrix, as bytes [n][k / block.weights * block.data_bytes]."""
    blocks = k // block.weights
    data = rng.integers(0, 256, (n, blocks, block.data_bytes), np.uint8)
    if block.ternary_bytes:
        four = np.array(
            [a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)],
            np.uint8,
        )
        data[:, :, : block.ternary_bytes] = four[rng.integers(0, 81, (n, blocks, block.ternary_bytes), np.uint8)]
    for at in block.scale_at:
        data[:, :, at : at + 2] = np.frombuffer(_SCALE.tobytes(), np.uint8)
    return data.reshape(n, blocks * block.data_bytes)


def write_gguf(path: Path, shape: Shape, format_name: str) -> None:
    """Write a GGUF file of `shape` with random weights, every matrix in one format (Q4_0 where k does not divide)."""
    import gguf  # only here, so that what is pure needs no such package

    rng = np.random.default_rng(0)
    part = path.with_suffix(".part")
    writer: Any = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}".encode() for i in range(shape.vocab)])
    writer.add_token_scores([0.0] * shape.vocab)
    writer.add_token_types([1] * shape.vocab)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, (n, k) in shape.matrices().items():
        used = used_format(format_name, k)
        writer.add_tensor(name, random_blocks(rng, BLOCKS[used], n, k), raw_dtype=gguf.GGMLQuantizationType[used])
    for name in ["output_norm", *(f"blk.{i}.{norm}_norm" for i in range(shape.layers) for norm in ("attn", "ffn"))]:
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
