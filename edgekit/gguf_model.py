"""A Llama in GGUF as Hugging Face would have it: config, tensor names, the order of rows.

llama.cpp rotates neighbours and Hugging Face the two halves of a head, so its converter reorders the rows of q and k;
here they are put back.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs.config import MOST_HEAD_DIM, MOST_HEADS, MOST_LAYERS, MOST_TRAINED, MOST_VOCAB, MOST_WIDTH, Config
from edgekit.errors import Damaged, Unsupported
from edgekit.gguf import BLOCKS, Gguf, GgufTensor
from edgekit.packed import Float32, Packed, Stored
from edgekit.tensor_files import FLOATS, read_array

ROPE_FACTORS: Final = "rope_freqs.weight"  # what each rotary frequency is divided by

_PARTS: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_READ: Final = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "vocab_size",
)
# Change nothing where the above are as they must be.
_IGNORED: Final = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")


def read_config(gguf: Gguf) -> dict[str, object]:
    """The config.json that the metadata stands for.

    Raises:
        Unsupported: another architecture, or a key that is not known: it may change what the model computes.
        Damaged: a value that is missing or malformed.
    """
    metadata = Config(gguf.metadata, f"the metadata of {gguf.file.name}")
    metadata.refuse_unless("general.architecture", ("llama",), default="none")
    if metadata.integer("split.count", low=0, high=1 << 16, default=0) > 1:
        raise Unsupported(f"{gguf.file.name} is one of several parts", hint="llama-gguf-split --merge joins them")
    unknown = [
        key
        for key in gguf.metadata
        if key.startswith("llama.") and key.removeprefix("llama.") not in (*_READ, *_IGNORED)
    ]
    if unknown:
        raise Unsupported(f"{metadata.name} has {unknown[0]!r:.80}", hint="edgekit reads dense Llama models")
    hidden = metadata.integer("llama.embedding_length", high=MOST_WIDTH)
    heads = metadata.integer("llama.attention.head_count", high=MOST_HEADS)
    size = metadata.integer("llama.attention.key_length", high=MOST_HEAD_DIM, default=hidden // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.integer(key, high=MOST_TRAINED, default=size) != size:
            raise Unsupported(f"{key} in {metadata.name} is not {size}, the size of a head", hint="one size for all")
    embedding = gguf.tensors.get("token_embd.weight")
    vocab = embedding.shape[0] if embedding is not None else 0
    if metadata.integer("llama.vocab_size", high=MOST_VOCAB, default=vocab) != vocab:
        raise Damaged(
            f"llama.vocab_size in {metadata.name} is not {vocab}, the rows of token_embd", hint="convert again"
        )
    config: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("llama.feed_forward_length", high=MOST_WIDTH),
        "num_hidden_layers": metadata.integer("llama.block_count", high=MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("llama.attention.head_count_kv", high=MOST_HEADS, default=heads),
        "head_dim": size,
        "vocab_size": vocab,
        "max_position_embeddings": metadata.integer("llama.context_length", high=MOST_TRAINED),
        "rms_norm_eps": metadata.number("llama.attention.layer_norm_rms_epsilon", low=0, high=1),
        "rope_theta": metadata.number("llama.rope.freq_base", low=0.5, high=1e15, default=10_000.0),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in gguf.tensors,
    }
    if metadata.refuse_unless("llama.rope.scaling.type", ("none", "linear"), default="none") == "linear":
        factor = metadata.number("llama.rope.scaling.factor", low=1e-3, high=1e6)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return config


def scaled_frequencies(gguf: Gguf, frequencies: tuple[float, ...]) -> tuple[float, ...]:
    """The rotary frequencies divided by the file's factors, if it has any (Llama 3.1)."""
    tensor = gguf.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return frequencies
    if tensor.kind != "F32" or tensor.shape != (len(frequencies),):
        raise Damaged(
            f"{ROPE_FACTORS} in {gguf.file.name} is not {len(frequencies)} values of F32", hint="convert again"
        )
    factors = read_array(gguf.file, tensor.offset, tensor.shape, "<f4")
    if not ((factors > 1e-6) & (factors < 1e6)).all():
        raise Damaged(f"{ROPE_FACTORS} in {gguf.file.name} has values that are no factors", hint="download it again")
    return tuple(float(value) for value in np.array(frequencies, np.float32) / factors)


def hugging_face_tensors(gguf: Gguf, head_dim: int) -> dict[str, Stored]:
    """The tensors under their Hugging Face names, rows of q and k in Hugging Face order."""
    tensors: dict[str, Stored] = {}
    for tensor in gguf.tensors.values():
        if tensor.name == ROPE_FACTORS:
            continue
        match = re.fullmatch(r"(?:blk\.(0|[1-9]\d{0,3})\.)?([a-z_]+)\.(weight|bias)", tensor.name)
        part = match and (_OUTER if match[1] is None else _PARTS).get(match[2])
        if match is None or part is None:
            raise Unsupported(
                f"{gguf.file.name} holds the tensor {tensor.name!r:.80}, which no Llama has",
                hint="edgekit reads dense Llama models",
            )
        name = f"{part}.{match[3]}" if match[1] is None else f"model.layers.{match[1]}.{part}.{match[3]}"
        head = head_dim if match[2] in ("attn_q", "attn_k") else 0
        if head and tensor.shape[0] % head:
            raise Damaged(
                f"{tensor.name} in {gguf.file.name} has {tensor.shape[0]} rows, no whole heads", hint="convert again"
            )
        rows = _Rows(gguf.file, tensor, head)
        if tensor.kind in FLOATS:
            tensors[name] = _Floats(name, tensor.shape, tensor.kind, tensor.bytes, rows)
        elif len(tensor.shape) == 2:
            shape = (tensor.shape[0], tensor.shape[1])
            bits = 4 if tensor.kind == "Q4_0" else 8
            tensors[name] = _Blocks(name, shape, tensor.kind, tensor.bytes, bits, BLOCKS[tensor.kind][0], rows)
        else:
            raise Unsupported(
                f"{tensor.name} in {gguf.file.name} is {tensor.kind} and no matrix", hint="F32 for vectors"
            )
    return tensors


@dataclass(frozen=True, slots=True)
class _Rows:
    """The bytes of a tensor's rows, in Hugging Face order if `head`, the rows of a head, is not 0."""

    file: Path
    tensor: GgufTensor
    head: int

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        row_bytes = self.tensor.bytes // self.tensor.shape[0]
        if not self.head:
            return read_array(self.file, self.tensor.offset + start * row_bytes, (stop - start, row_bytes), np.uint8)
        first, last = start // self.head * self.head, -(-stop // self.head) * self.head
        stored = read_array(self.file, self.tensor.offset + first * row_bytes, (last - first, row_bytes), np.uint8)
        # Row 2 j + p of a head in the file is row j of its half p.
        heads, rows = np.divmod(np.arange(start, stop) - first, self.head)
        half, pair = np.divmod(rows, self.head // 2)
        in_order: npt.NDArray[np.uint8] = stored[heads * self.head + 2 * pair + half]
        return in_order


@dataclass(frozen=True, eq=False)
class _Floats(Stored):
    rows_of: _Rows

    def values(self, start: int, stop: int) -> Float32:
        stored = self.rows_of.read(start, stop).view(FLOATS[self.dtype])
        wide = (stored.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else stored.astype(np.float32)
        return wide.reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True, eq=False)
class _Blocks(Packed):
    """Blocks of an f16 scale and 32 codes. Q4_0 has code + 8 in nibbles, first half low and second half high."""

    rows_of: _Rows

    def rows(self, start: int, stop: int) -> tuple[npt.NDArray[Any], Float32]:
        n, k = stop - start, self.shape[1]
        blocks = self.rows_of.read(start, stop).reshape(n, k // self.group, -1)
        scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float32)
        stored = blocks[:, :, 2:]
        if self.bits == 8:
            return stored.reshape(n, k).view(np.int8), scales
        nibbles = np.concatenate([stored & 15, stored >> 4], axis=2)
        return nibbles.reshape(n, k).view(np.int8) - np.int8(8), scales

    @functools.cached_property
    def code_range(self) -> tuple[int, int]:
        # Q8_0 could also have -128; no quantizer writes it, and where it comes it is refused.
        return (-8, 7) if self.bits == 4 else (-127, 127)
