"""A decoder's nodes and lazy weights in standard ONNX.

One builder serves every architecture: what differs is in the Decoder. Nodes and the values they give share a name;
those that stand for a layer of the checkpoint bear its name there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.archs import Decoder
from edgekit.checkpoint import Checkpoint

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Shape = Sequence[int | str]  # "s" is the number of new tokens

OPSET: Final = 24
_IR_VERSION: Final = 12  # the first with opset 24
_ROWS_AT_ONCE: Final = 64  # of a transposition: 64 rows of 2048 floats fit a level 2 cache


def decoder_model(checkpoint: Checkpoint, context: int) -> ir.Model:
    """The checkpoint's decoder with a cache of `context` positions; graph.py says what its inputs and outputs are."""
    return _Builder(checkpoint, context).build()


def rotation(decoder: Decoder, context: int) -> tuple[Float32, Float32]:
    """Cosines and sines (context, head_dim / 2): angles in float32, as in transformers, the functions in double."""
    angles = np.arange(context, dtype=np.float32)[:, None] * np.array(decoder.inv_freq, np.float32)
    wide = angles.astype(np.float64)
    scale = decoder.rope_scale
    return (np.cos(wide) * scale).astype(np.float32), (np.sin(wide) * scale).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What every layer needs to know of the new tokens. `window` is a mask, None where every token sees all."""

    position: ir.Value  # [1], of the first
    positions: ir.Value  # [1, s]
    length: ir.Value  # [1], positions filled once they are in the cache
    window: ir.Value | None


class _Builder:
    """Collects the nodes and initializers of one decoder."""

    def __init__(self, checkpoint: Checkpoint, context: int) -> None:
        self.checkpoint = checkpoint
        self.decoder = checkpoint.decoder
        self.context = context
        self.shapes = self.decoder.tensor_shapes()
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def build(self) -> ir.Model:
        decoder = self.decoder
        input_ids = _value("input_ids", [1, "s"], ir.DataType.INT64)
        position = _value("position", [1], ir.DataType.INT64)
        inputs, outputs = [input_ids, position], []
        tokens = self.tokens(input_ids, position)
        embedding = self.weight("model.embed_tokens.weight")
        x = self.node("Gather", [embedding, input_ids], "model.embed_tokens", [1, "s", decoder.hidden], axis=0)
        for layer in range(decoder.layers):
            past = [_value(f"past_{kind}_{layer}", self.cache_shape) for kind in ("key", "value")]
            x, present = self.attention(layer, x, past, tokens)
            x = self.mlp(layer, x)
            inputs += past
            outputs += present
        x = self.norm(x, "model.norm", [1, "s", decoder.hidden])
        logits = self.node("MatMul", [x, self.head(embedding)], "lm_head", [1, "s", decoder.vocab])
        logits.name = "logits"
        graph = ir.Graph(
            inputs,
            [logits, *outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name=decoder.model_type,
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="edgekit")

    @property
    def cache_shape(self) -> Shape:
        return [1, self.decoder.kv_heads, self.context, self.decoder.head_dim]

    @property
    def wide(self) -> Shape:
        """The shape of the residual stream."""
        return [1, "s", self.decoder.hidden]

    def attention(
        self, layer: int, x: ir.Value, past: Sequence[ir.Value], tokens: _Tokens
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The residual stream after a layer's attention, and the layer's updated cache."""
        decoder, name = self.decoder, f"model.layers.{layer}.self_attn"
        normed = self.norm(x, f"model.layers.{layer}.input_layernorm", self.wide)
        q = self.rotate(self.heads(normed, f"{name}.q", decoder.heads), f"{name}.q", decoder.heads, tokens)
        k = self.rotate(self.heads(normed, f"{name}.k", decoder.kv_heads), f"{name}.k", decoder.kv_heads, tokens)
        v = self.to_front(self.heads(normed, f"{name}.v", decoder.kv_heads), f"{name}.v", decoder.kv_heads)
        present = [
            self.node(
                "TensorScatter", [cache, new, tokens.position], f"present_{kind}_{layer}", self.cache_shape, axis=2
            )
            for cache, new, kind in zip(past, (k, v), ("key", "value"), strict=True)
        ]
        attended = self.node(
            "Attention",
            [q, *present, tokens.window, None, None, tokens.length],
            name,
            [1, decoder.heads, "s", decoder.head_dim],
            is_causal=1,
            scale=decoder.head_dim**-0.5,
        )
        rows: Shape = [1, "s", decoder.heads, decoder.head_dim]
        attended = self.node("Transpose", [attended], f"{name}.transpose", rows, perm=[0, 2, 1, 3])
        joined = self.reshape(attended, f"{name}.join", [1, -1, decoder.heads * decoder.head_dim])
        return self.node("Add", [x, self.linear(joined, f"{name}.o_proj")], f"{name}.residual", self.wide), present

    def mlp(self, layer: int, x: ir.Value) -> ir.Value:
        """The residual stream after a layer's SwiGLU."""
        name = f"model.layers.{layer}.mlp"
        inner: Shape = [1, "s", self.decoder.intermediate]
        normed = self.norm(x, f"model.layers.{layer}.post_attention_layernorm", self.wide)
        gate = self.node("Swish", [self.linear(normed, f"{name}.gate_proj")], f"{name}.swish", inner)
        gated = self.node("Mul", [gate, self.linear(normed, f"{name}.up_proj")], f"{name}.gated", inner)
        return self.node("Add", [x, self.linear(gated, f"{name}.down_proj")], f"{name}.residual", self.wide)

    def head(self, embedding: ir.Value) -> ir.Value:
        """The head's matrix (hidden, vocab)."""
        if not self.decoder.tied:
            return self.matrix("lm_head.weight")
        shape = [self.decoder.hidden, self.decoder.vocab]
        return self.node("Transpose", [embedding], "lm_head.transpose", shape, perm=[1, 0])

    def heads(self, x: ir.Value, name: str, count: int) -> ir.Value:
        """Queries, keys or values of every head: [1, s, count, head_dim]."""
        return self.reshape(self.linear(x, f"{name}_proj"), f"{name}.split", [1, -1, count, self.decoder.head_dim])

    def rotate(self, x: ir.Value, name: str, count: int, tokens: _Tokens) -> ir.Value:
        """Heads of queries or keys, normed if the decoder does so, rotated by their positions, to the front."""
        size = self.decoder.head_dim
        if self.decoder.qk_norm:
            x = self.norm(x, f"{name}_norm", [1, "s", count, size])
        x = self.to_front(x, name, count)
        cos, sin = self.cos_and_sin()
        return self.node("RotaryEmbedding", [x, cos, sin, tokens.positions], f"{name}.rotary", [1, count, "s", size])

    def to_front(self, x: ir.Value, name: str, count: int) -> ir.Value:
        """[1, s, count, head_dim] -> [1, count, s, head_dim]."""
        shape: Shape = [1, count, "s", self.decoder.head_dim]
        return self.node("Transpose", [x], f"{name}.transpose", shape, perm=[0, 2, 1, 3])

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """x times the matrix `name`, plus its bias if the decoder has one."""
        shape: Shape = [1, "s", self.shapes[f"{name}.weight"][0]]
        y = self.node("MatMul", [x, self.matrix(f"{name}.weight")], name, shape)
        if f"{name}.bias" in self.shapes:
            y = self.node("Add", [y, self.weight(f"{name}.bias")], f"{name}.add_bias", shape)
        return y

    def norm(self, x: ir.Value, name: str, shape: Shape) -> ir.Value:
        weight = self.weight(f"{name}.weight")
        return self.node("RMSNormalization", [x, weight], name, shape, axis=-1, epsilon=self.decoder.norm_eps)

    def reshape(self, x: ir.Value, name: str, sizes: list[int]) -> ir.Value:
        """x with its last dimension split or the last two joined; -1 is s."""
        return self.node("Reshape", [x, self.constant(sizes)], name, ["s" if size == -1 else size for size in sizes])

    def tokens(self, input_ids: ir.Value, position: ir.Value) -> _Tokens:
        """Positions of the new tokens, and what they see."""
        int64, axis = ir.DataType.INT64, self.constant([0])
        count = self.node("Shape", [input_ids], "count", [1], int64, start=1, end=2)
        length = self.node("Add", [position, count], "length", [1], int64)
        start = self.node("Squeeze", [position, axis], "positions.start", [], int64)
        stop = self.node("Squeeze", [length, axis], "positions.stop", [], int64)
        row = self.node("Range", [start, stop, self.constant(1)], "positions.row", ["s"], int64)
        positions = self.node("Unsqueeze", [row, axis], "positions", [1, "s"], int64)
        return _Tokens(position, positions, length, self.window(row) if self.decoder.window else None)

    def window(self, row: ir.Value) -> ir.Value:
        """True where a cached position [context] is within the window of a new token [s]; causality comes on top."""
        int64 = ir.DataType.INT64
        column = self.node("Unsqueeze", [row, self.constant([1])], "window.column", ["s", 1], int64)
        before = self.node("Sub", [column, self.constant(self.decoder.window)], "window.before", ["s", 1], int64)
        cached = self.initializer(
            "window.cached", [1, self.context], int64, lambda: np.arange(self.context, dtype=np.int64)[None]
        )
        return self.node("Greater", [cached, before], "window", ["s", self.context], ir.DataType.BOOL)

    def cos_and_sin(self) -> list[ir.Value]:
        """`rotation` as two initializers."""
        shape = [self.context, len(self.decoder.inv_freq)]
        return [
            self.initializer("rotary.cos", shape, ir.DataType.FLOAT, lambda: rotation(self.decoder, self.context)[0]),
            self.initializer("rotary.sin", shape, ir.DataType.FLOAT, lambda: rotation(self.decoder, self.context)[1]),
        ]

    def weight(self, name: str) -> ir.Value:
        """The tensor `name`, as in the checkpoint."""
        return self.initializer(name, self.shapes[name], ir.DataType.FLOAT, lambda: self.checkpoint.read(name))

    def matrix(self, name: str) -> ir.Value:
        """The matrix `name`, transposed to (k, n)."""
        shape = self.shapes[name][::-1]
        return self.initializer(name, shape, ir.DataType.FLOAT, lambda: _read_transposed(self.checkpoint, name))

    def constant(self, value: int | list[int]) -> ir.Value:
        array = np.array(value, np.int64)
        name = f"constant.{'_'.join(map(str, array.reshape(-1)))}.{array.ndim}d"
        return self.initializer(name, array.shape, ir.DataType.INT64, lambda: array)

    def initializer(self, name: str, shape: Sequence[int], dtype: ir.DataType, read: Callable[[], Array]) -> ir.Value:
        """The initializer `name`, made on its first use; `read` gives its values whenever they are needed."""
        if name not in self.initializers:
            value = _value(name, shape, dtype)
            value.const_value = ir.LazyTensor(lambda: ir.Tensor(read(), name=name), dtype, ir.Shape(shape), name=name)
            self.initializers[name] = value
        return self.initializers[name]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: Shape,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: float | int | list[int],
    ) -> ir.Value:
        """The output, called `name` too, of a new node."""
        output = _value(name, shape, dtype)
        self.nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output


def _value(name: str, shape: Shape, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _read_transposed(checkpoint: Checkpoint, name: str) -> Float32:
    """The matrix `name` as (k, n), never with a second copy in memory."""
    n, k = checkpoint.tensors[name].shape
    transposed = np.empty((k, n), np.float32)
    for start, rows in checkpoint.read_blocks(name, block_bytes=4 * k * _ROWS_AT_ONCE):
        transposed[:, start : start + len(rows)] = rows.T
    return transposed
