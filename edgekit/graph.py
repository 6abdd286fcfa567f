"""A decoder as standard ONNX, built from its dimensions, and how the reference engine runs it.

One graph serves prefill, chunked prefill and decode: s new tokens are computed after the `position` that are in the
cache already, and the cache is updated in place where past and present are bound to the same memory.

    input_ids [1, s], position [1], past_key_<i>, past_value_<i> [1, kv_heads, context, head_dim]
    -> logits [1, s, vocab], present_key_<i>, present_value_<i>

Weights keep their checkpoint names. Vectors and the embedding (vocab, hidden) lie as in the checkpoint. Every other
matrix is stored as (k, n), the transpose of the checkpoint's (n, k), and is the right operand of a MatMul that bears
its name without `.weight`: ONNX Runtime 1.32 fuses DequantizeLinear(axis 0, blocked) + MatMul to MatMulNBits only in
that form; behind a Transpose or a Gemm it stays unfused. A tied head is MatMul over Transpose of the embedding.

Opset 24: TensorScatter appeared in it, and ONNX Runtime 1.32 executes Attention and Swish of 24, but not of 25.
"""

import contextlib
import dataclasses
import functools
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from google.protobuf.message import DecodeError

from edgekit.archs import Decoder
from edgekit.checkpoint import Checkpoint
from edgekit.errors import Damaged, UsageError

Float32 = npt.NDArray[np.float32]
Shape = list[int | str]
Progress = Callable[[int, int], None]  # bytes done, bytes in all

OPSET: Final = 24
_IR_VERSION: Final = 12
_FILE: Final = "model.onnx"
_DATA_FILE: Final = "model.onnx.data"
_INLINE_BYTES: Final = 4096  # smaller tensors stay in the .onnx
_ALIGNMENT: Final = 65536  # of tensors in the data file: the largest page of any machine that maps it
_ROWS_AT_ONCE: Final = 64  # of a transposition: 64 rows of 2048 floats fit a level 2 cache


@dataclass(frozen=True)
class Graph:
    """A decoder in ONNX with lazy weights. `context` is how many positions the cache holds."""

    model: ir.Model
    decoder: Decoder
    context: int
    digest: Callable[[], str]

    @functools.cached_property
    def made_from(self) -> str:
        """Digest of the checkpoint. The first use reads the checkpoint's files."""
        return self.digest()


def build_graph(checkpoint: Checkpoint, *, context: int) -> Graph:
    """The checkpoint's decoder with a cache of `context` positions. Reads no weights.

    Raises:
        UsageError: a context the model was not made for.
    """
    decoder = checkpoint.decoder
    if not 1 <= context <= decoder.context:
        raise UsageError(
            f"a context of {context} tokens is outside the model's", hint=f"from 1 to {decoder.context} tokens"
        )
    model = _Builder(checkpoint, context).build()
    return Graph(model, decoder, context, lambda: checkpoint.digest)


class _Builder:
    """Collects the nodes and initializers of one decoder."""

    def __init__(self, checkpoint: Checkpoint, context: int) -> None:
        self.checkpoint = checkpoint
        self.decoder = checkpoint.decoder
        self.context = context
        self.shapes = self.decoder.tensor_shapes()
        self.cache_shape = [1, self.decoder.kv_heads, context, self.decoder.head_dim]
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def build(self) -> ir.Model:
        decoder = self.decoder
        input_ids = _value("input_ids", [1, "s"], ir.DataType.INT64)
        position = _value("position", [1], ir.DataType.INT64)
        inputs, outputs = [input_ids, position], []
        positions, length = self.positions(input_ids, position)
        mask = self.window_mask(positions) if decoder.window else None
        embedding = self.weight("model.embed_tokens.weight")
        x = self.node("Gather", [embedding, input_ids], "model.embed_tokens", [1, "s", decoder.hidden], axis=0)
        for layer in range(decoder.layers):
            past = [_value(f"past_{kind}_{layer}", self.cache_shape) for kind in ("key", "value")]
            x, present = self.layer(layer, x, past, position, positions, length, mask)
            inputs += past
            outputs += present
        x = self.norm(x, "model.norm", [1, "s", decoder.hidden])
        if decoder.tied:
            head = self.node(
                "Transpose", [embedding], "lm_head.transpose", [decoder.hidden, decoder.vocab], perm=[1, 0]
            )
        else:
            head = self.matrix("lm_head.weight")
        logits = self.node("MatMul", [x, head], "lm_head", [1, "s", decoder.vocab])
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

    def layer(
        self,
        layer: int,
        x: ir.Value,
        past: Sequence[ir.Value],
        position: ir.Value,
        positions: ir.Value,
        length: ir.Value,
        mask: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The residual stream after `layer`, and the layer's updated cache."""
        decoder, prefix = self.decoder, f"model.layers.{layer}"
        wide = [1, "s", decoder.hidden]
        normed = self.norm(x, f"{prefix}.input_layernorm", wide)
        name = f"{prefix}.self_attn"
        q = self.rotate(self.heads(normed, f"{name}.q", decoder.heads), f"{name}.q", decoder.heads, positions)
        k = self.rotate(self.heads(normed, f"{name}.k", decoder.kv_heads), f"{name}.k", decoder.kv_heads, positions)
        v = self.to_front(self.heads(normed, f"{name}.v", decoder.kv_heads), f"{name}.v", decoder.kv_heads)
        present = [
            self.node("TensorScatter", [cache, new, position], f"present_{kind}_{layer}", self.cache_shape, axis=2)
            for cache, new, kind in zip(past, (k, v), ("key", "value"), strict=True)
        ]
        attended = self.node(
            "Attention",
            [q, *present, mask, None, None, length],
            name,
            [1, decoder.heads, "s", decoder.head_dim],
            is_causal=1,
            scale=decoder.head_dim**-0.5,
        )
        rows = self.node(
            "Transpose",
            [attended],
            f"{name}.transpose",
            [1, "s", decoder.heads, decoder.head_dim],
            perm=[0, 2, 1, 3],
        )
        joined = self.reshape(rows, f"{name}.join", [1, -1, decoder.heads * decoder.head_dim])
        x = self.node("Add", [x, self.linear(joined, f"{name}.o_proj")], f"{name}.residual", wide)

        normed = self.norm(x, f"{prefix}.post_attention_layernorm", wide)
        name = f"{prefix}.mlp"
        inner = [1, "s", decoder.intermediate]
        gate = self.node("Swish", [self.linear(normed, f"{name}.gate_proj")], f"{name}.swish", inner)
        gated = self.node("Mul", [gate, self.linear(normed, f"{name}.up_proj")], f"{name}.gated", inner)
        return self.node("Add", [x, self.linear(gated, f"{name}.down_proj")], f"{name}.residual", wide), present

    def heads(self, x: ir.Value, name: str, count: int) -> ir.Value:
        """Queries, keys or values of every head: [1, s, count, head_dim]."""
        return self.reshape(self.linear(x, f"{name}_proj"), f"{name}.split", [1, -1, count, self.decoder.head_dim])

    def rotate(self, x: ir.Value, name: str, count: int, positions: ir.Value) -> ir.Value:
        """Heads of queries or keys, normed if the decoder does so, rotated by their positions."""
        size = self.decoder.head_dim
        if self.decoder.qk_norm:
            x = self.norm(x, f"{name}_norm", [1, "s", count, size])
        x = self.to_front(x, name, count)
        cos, sin = self.rotation()
        return self.node("RotaryEmbedding", [x, cos, sin, positions], f"{name}.rotary", [1, count, "s", size])

    def to_front(self, x: ir.Value, name: str, count: int) -> ir.Value:
        """[1, s, count, head_dim] -> [1, count, s, head_dim]."""
        shape = [1, count, "s", self.decoder.head_dim]
        return self.node("Transpose", [x], f"{name}.transpose", shape, perm=[0, 2, 1, 3])

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """x times the matrix `name`, plus its bias if the decoder has one."""
        shape = [1, "s", self.shapes[f"{name}.weight"][0]]
        y = self.node("MatMul", [x, self.matrix(f"{name}.weight")], name, shape)
        if f"{name}.bias" in self.shapes:
            y = self.node("Add", [y, self.weight(f"{name}.bias")], f"{name}.add_bias", shape)
        return y

    def norm(self, x: ir.Value, name: str, shape: Shape) -> ir.Value:
        weight = self.weight(f"{name}.weight")
        return self.node("RMSNormalization", [x, weight], name, shape, axis=-1, epsilon=self.decoder.norm_eps)

    def reshape(self, x: ir.Value, name: str, sizes: list[int]) -> ir.Value:
        """x with its last dimension split or the last two joined; -1 is s."""
        shape: Shape = ["s" if size == -1 else size for size in sizes]
        return self.node("Reshape", [x, self.constant(sizes)], name, shape)

    def positions(self, input_ids: ir.Value, position: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The position of every new token [1, s], and how many positions are filled after them [1]."""
        int64, axis = ir.DataType.INT64, self.constant([0])
        count = self.node("Shape", [input_ids], "count", [1], dtype=int64, start=1, end=2)
        length = self.node("Add", [position, count], "length", [1], dtype=int64)
        ends = [
            self.node("Squeeze", [end, axis], f"positions.{which}", [], dtype=int64)
            for end, which in ((position, "start"), (length, "stop"))
        ]
        row = self.node("Range", [*ends, self.constant(1)], "positions.row", ["s"], dtype=int64)
        return self.node("Unsqueeze", [row, axis], "positions", [1, "s"], dtype=int64), length

    def window_mask(self, positions: ir.Value) -> ir.Value:
        """True where a cached position [context] is within the window of a new token [s]; causality comes on top."""
        int64, axis = ir.DataType.INT64, self.constant([0])
        row = self.node("Squeeze", [positions, axis], "window.row", ["s"], dtype=int64)
        column = self.node("Unsqueeze", [row, self.constant([1])], "window.column", ["s", 1], dtype=int64)
        before = self.node("Sub", [column, self.constant(self.decoder.window)], "window.before", ["s", 1], dtype=int64)
        cached = self.initializer("window.cached", [1, self.context], ir.DataType.INT64, self.cached_positions)
        shape: Shape = ["s", self.context]
        return self.node("Greater", [cached, before], "window", shape, dtype=ir.DataType.BOOL)

    def cached_positions(self) -> npt.NDArray[np.int64]:
        return np.arange(self.context, dtype=np.int64)[None]

    def rotation(self) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines (context, head_dim / 2) of every position's angles, as the native engine computes them."""
        shape = [self.context, len(self.decoder.inv_freq)]
        cos = self.initializer("rotary.cos", shape, ir.DataType.FLOAT, lambda: rotation(self.decoder, self.context)[0])
        sin = self.initializer("rotary.sin", shape, ir.DataType.FLOAT, lambda: rotation(self.decoder, self.context)[1])
        return cos, sin

    def weight(self, name: str) -> ir.Value:
        """The tensor `name`, as in the checkpoint."""
        return self.initializer(name, self.shapes[name], ir.DataType.FLOAT, lambda: self.checkpoint.read(name))

    def matrix(self, name: str) -> ir.Value:
        """The matrix `name`, transposed to (k, n)."""
        shape = self.shapes[name][::-1]
        return self.initializer(name, shape, ir.DataType.FLOAT, lambda: _read_transposed(self.checkpoint, name))

    def constant(self, value: int | list[int]) -> ir.Value:
        array = np.array(value, np.int64)
        name = "constant." + "_".join(map(str, array.reshape(-1))) + ("" if array.ndim else ".scalar")
        if name not in self.initializers:
            value = _value(name, list(array.shape), ir.DataType.INT64)
            value.const_value = ir.tensor(array, name=name)
            self.initializers[name] = value
        return self.initializers[name]

    def initializer(
        self, name: str, shape: Sequence[int], dtype: ir.DataType, read: Callable[[], npt.NDArray[Any]]
    ) -> ir.Value:
        """The initializer `name`, made on its first use; `read` gives its values whenever they are needed."""
        if name not in self.initializers:
            tensor = ir.LazyTensor(lambda: ir.Tensor(read(), name=name), dtype, ir.Shape(shape), name=name)
            value = _value(name, list(shape), dtype)
            value.const_value = tensor
            self.initializers[name] = value
        return self.initializers[name]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: Shape,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: float | int | list[int],
    ) -> ir.Value:
        """The output, called `name` too, of a new node."""
        output = _value(name, shape, dtype)
        self.nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output


def _value(name: str, shape: Shape, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def rotation(decoder: Decoder, context: int) -> tuple[Float32, Float32]:
    """Cosines and sines (context, head_dim / 2): angles in float32, as in transformers, the functions in double."""
    angles = np.arange(context, dtype=np.float32)[:, None] * np.array(decoder.inv_freq, np.float32)
    wide = angles.astype(np.float64)
    scale = decoder.rope_scale
    return (np.cos(wide) * scale).astype(np.float32), (np.sin(wide) * scale).astype(np.float32)


def _read_transposed(checkpoint: Checkpoint, name: str) -> Float32:
    """The matrix `name` as (k, n), never with a second copy in memory."""
    n, k = checkpoint.tensors[name].shape
    transposed = np.empty((k, n), np.float32)
    for start, rows in checkpoint.read_blocks(name, block_bytes=4 * k * _ROWS_AT_ONCE):
        transposed[:, start : start + len(rows)] = rows.T
    return transposed


def save_graph(graph: Graph, directory: Path, *, progress: Progress | None = None) -> Path:
    """The path of model.onnx in `directory`, with its weights in float32 in model.onnx.data beside it.

    Files appear complete or not at all.
    """
    model = graph.model.clone()
    model.metadata_props["edgekit.made_from"] = graph.made_from
    model.metadata_props["edgekit.context"] = str(graph.context)
    model.metadata_props["edgekit.decoder"] = json.dumps(dataclasses.asdict(graph.decoder))
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / _FILE
    save_model(model, file, progress=progress)
    return file


def save_model(model: ir.Model, file: Path, *, progress: Progress | None = None) -> None:
    """Writes any model to `file` and its larger tensors to `<file>.data`, one tensor in memory at a time.

    The data is renamed into place before the model that refers to it, so an interrupted save leaves no model.
    """
    model = model.clone()
    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    large = [value for value in values if value.const_value.nbytes >= _INLINE_BYTES]
    total, done = sum(value.const_value.nbytes for value in large), 0
    data_file = file.with_name(file.name + ".data")
    file.unlink(missing_ok=True)
    with _written(data_file) as stream:
        for value in large:
            tensor = value.const_value
            offset = -(-stream.tell() // _ALIGNMENT) * _ALIGNMENT
            stream.seek(offset)
            tensor.tofile(stream)
            value.const_value = ir.ExternalTensor(
                data_file.name, offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name
            )
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    with _written(file) as stream:
        stream.write(ir.to_proto(model).SerializeToString(deterministic=True))


@contextlib.contextmanager
def _written(file: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes become `file` when the block ends well, and vanish when it does not."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(stream.name, file)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise


def load_graph(directory: Path) -> Graph:
    """The graph that `save_graph` wrote to `directory`; its weights stay on disk.

    Raises:
        Damaged: not such a graph, or files that do not belong together.
    """
    file = directory / _FILE
    try:
        model = ir.load(file)
        decoder = _decoder(json.loads(model.metadata_props["edgekit.decoder"]))
        context = int(model.metadata_props["edgekit.context"])
        made_from = model.metadata_props["edgekit.made_from"]
    except (OSError, KeyError, TypeError, ValueError, DecodeError) as error:
        raise Damaged(f"{file} is not a graph that edgekit saved: {error}", hint="compile again") from error
    check_external_data(model, file)
    return Graph(model, decoder, context, lambda: made_from)


def check_external_data(model: ir.Model, file: Path) -> None:
    """Every tensor outside the model lies within `<file>.data`, a regular file of one name in the same folder.

    Raises:
        Damaged: one that does not; ONNX's external data has led readers out of their folder before (CVE-2024-27318).
    """
    data_file = file.with_name(file.name + ".data")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        try:
            status = data_file.lstat()
        except OSError as error:
            raise Damaged(f"cannot read {data_file}: {error.strerror}", hint="compile again") from error
        is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and tensor.location == data_file.name
        if not is_plain or (tensor.offset or 0) < 0 or (tensor.offset or 0) + (tensor.length or 0) > status.st_size:
            raise Damaged(f"the tensor '{value.name}' of {file} does not lie in {data_file.name}", hint="compile again")


def _decoder(fields: dict[str, Any]) -> Decoder:
    return Decoder(**fields | {"inv_freq": tuple(fields["inv_freq"])})


class Session:
    """A decoder in ONNX, run on stock ONNX Runtime with one cache that is updated in place.

    Takes a graph, whose weights it writes to a temporary folder first, or the path of a saved model with the inputs
    and outputs named above. ONNX Runtime maps the weights from the file, so they can be evicted under memory pressure.
    """

    def __init__(self, model: Graph | Path, *, threads: int = 2) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-") if isinstance(model, Graph) else None
        try:
            file = save_graph(model, Path(self._folder.name)) if isinstance(model, Graph) else model
            self._session = onnxruntime.InferenceSession(
                file, _session_options(threads), providers=["CPUExecutionProvider"]
            )
        except BaseException:
            self.close()
            raise
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self.vocab: int = self._session.get_outputs()[0].shape[-1]
        caches = [name for name in shapes if name.startswith("past_")]
        self.context: int = shapes[caches[0]][2]
        self.position = 0
        self._caches = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shapes[name], np.float32)) for name in caches
        }

    def reset(self, position: int = 0) -> None:
        """Forgets every token from `position` on."""
        assert 0 <= position <= self.position
        self.position = position

    def prefill(self, ids: Sequence[int], *, chunk: int = 256) -> Float32:
        """Logits [s, vocab] after each of the s tokens `ids`, which are appended to the cache, `chunk` at a time.

        Raises:
            UsageError: a token outside the vocabulary, or more tokens than the context holds.
        """
        tokens = self._checked(ids)
        logits = np.empty((len(tokens), self.vocab), np.float32)
        for start in range(0, len(tokens), chunk):
            rows = tokens[start : start + chunk]
            logits[start : start + len(rows)] = self._run(rows)
        return logits

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""
        return self._run(self._checked([token]))[0]

    def logits(self, ids: Sequence[int], *, chunk: int = 256) -> Float32:
        """Logits [s, vocab] of a text on its own: what was in the cache is forgotten."""
        self.reset()
        return self.prefill(ids, chunk=chunk)

    def close(self) -> None:
        """Removes the temporary folder, if there is one."""
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        tokens = np.asarray(ids, np.int64).reshape(-1)
        outside = tokens[(tokens < 0) | (tokens >= self.vocab)]
        if outside.size:
            raise UsageError(f"the token {outside[0]} is outside the vocabulary", hint=f"from 0 to {self.vocab - 1}")
        if self.position + len(tokens) > self.context:
            raise UsageError(
                f"{self.position + len(tokens)} tokens do not fit the context", hint=f"it holds {self.context}"
            )
        return tokens

    def _run(self, tokens: npt.NDArray[np.int64]) -> Float32:
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", tokens[None])
        binding.bind_cpu_input("position", np.array([self.position], np.int64))
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), cache)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        self.position += len(tokens)
        logits: Float32 = binding.get_outputs()[-1].numpy()[0]
        return logits


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options
