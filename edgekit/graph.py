"""A decoder as standard ONNX, built from its dimensions, and how the reference engine runs it.

One graph serves prefill, chunked prefill and decode: s new tokens are computed after the `position` that are in the
cache already, and the cache is updated in place where past and present are bound to the same memory.

    input_ids [1, s], position [1], past_key_<i>, past_value_<i> [1, kv_heads, context, head_dim]
    -> logits [1, s, vocab], present_key_<i>, present_value_<i>

Weights keep their checkpoint names. Vectors and the embedding (vocab, hidden) lie as in the checkpoint. Every other
matrix is stored as (k, n), the transpose of the checkpoint's (n, k), and is the right operand of a MatMul that bears
its name without `.weight`: ONNX Runtime 1.32 fuses DequantizeLinear(axis 0, blocked) + MatMul to MatMulNBits only in
that form; behind a Transpose or in a Gemm it stays unfused. A tied head is MatMul over Transpose of the embedding.

Opset 24: TensorScatter appeared in it, and ONNX Runtime 1.32 runs Attention and Swish of 24, but has only the slow
function body for Attention of 25, and nothing for Swish there.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from edgekit.archs import Decoder
from edgekit.checkpoint import Checkpoint
from edgekit.errors import Damaged, UsageError
from edgekit.onnx_decoder import decoder_model
from edgekit.onnx_files import Progress, load_model, save_model

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]

_FILE: Final = "model.onnx"
_RAN: Final = "_kernel_time"  # what ONNX Runtime puts behind the name of a node that it profiled
# ONNX Runtime's exceptions have no base of their own.
RUNTIME_ERRORS: Final = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
    UnicodeDecodeError,  # one of those whose message quotes a damaged name
)


@dataclass(frozen=True)
class Graph:
    """A decoder in ONNX with lazy weights. `context` is how many positions the cache holds."""

    model: ir.Model
    decoder: Decoder
    context: int
    digest: Callable[[], str] = dataclasses.field(repr=False, compare=False)

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
    return Graph(decoder_model(checkpoint, context), decoder, context, lambda: checkpoint.digest)


def save_graph(graph: Graph, directory: Path, *, progress: Progress | None = None) -> Path:
    """Writes the graph with its weights in float32 to `directory` and returns the path of its model.onnx.

    Takes 4 bytes a weight on disk, and in memory no more than the largest tensor.
    """
    model = graph.model.clone()
    model.metadata_props["edgekit.made_from"] = graph.made_from
    model.metadata_props["edgekit.context"] = str(graph.context)
    model.metadata_props["edgekit.decoder"] = json.dumps(dataclasses.asdict(graph.decoder))
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / _FILE
    save_model(model, file, progress=progress)
    return file


def load_graph(directory: Path) -> Graph:
    """The graph that `save_graph` wrote to `directory`; its weights stay on disk.

    Raises:
        Damaged: not such a graph, or files that do not belong together.
    """
    model = load_model(directory / _FILE)
    try:
        fields = json.loads(model.metadata_props["edgekit.decoder"])
        decoder = Decoder(**fields | {"inv_freq": tuple(fields["inv_freq"])})
        context = int(model.metadata_props["edgekit.context"])
        made_from = model.metadata_props["edgekit.made_from"]
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{directory / _FILE} is not a graph that edgekit saved", hint="compile again") from error
    return Graph(model, decoder, context, lambda: made_from)


def with_biases(graph: Graph) -> Graph:
    """The graph with a bias on every linear layer but the head: zeros where the checkpoint has none."""
    decoder = dataclasses.replace(graph.decoder, qkv_bias=True, o_bias=True, mlp_bias=True)
    missing = decoder.tensor_shapes().keys() - graph.decoder.tensor_shapes().keys()
    model = graph.model.clone()
    for node in [node for node in model.graph if f"{node.name}.bias" in missing]:
        result = node.outputs[0]
        name, shape = f"{node.name}.bias", decoder.tensor_shapes()[f"{node.name}.bias"]
        zeros = ir.tensor(np.zeros(shape, np.float32), name=name)
        bias = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(zeros.dtype), const_value=zeros)
        model.graph.register_initializer(bias)
        total = ir.Value(name=f"{node.name}.add_bias", shape=result.shape, type=result.type)
        ir.convenience.replace_all_uses_with(result, total)
        model.graph.insert_after(node, ir.node("Add", [result, bias], outputs=[total], name=total.name))
    return dataclasses.replace(graph, model=model, decoder=decoder)


class Session:
    """A decoder in ONNX, run on stock ONNX Runtime with a cache that is updated in place.

    Takes a graph, whose weights it first writes to a temporary folder (4 bytes each; TMPDIR says where), or the file
    of a saved model with the inputs and outputs named above. Weights are mapped from the file: beside them a session
    takes some hundred megabytes, and under memory pressure they are read again instead of swapped.
    """

    def __init__(
        self,
        model: Graph | Path,
        *,
        threads: int = 2,
        prepack: bool = False,
        exact: bool = False,
        profile: Path | None = None,
    ) -> None:
        """`exact` keeps activations in float32 also where MatMulNBits would round them to int8 to be fast.

        `prepack` folds constants and copies the weights into the layout of ONNX Runtime's kernels.

        Of no use in float32 (1.1 B: 4.1 GB instead of 0.2 GB of anonymous memory, 13 s to load, equally fast), while
        a quantized graph (portable.py) becomes MatMulNBits, and that has its fast kernels, only with it.

        `profile` is how the name of a new file begins, in which `executed` finds what ran.
        """
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            if isinstance(model, Graph):
                self._folder = tempfile.TemporaryDirectory(prefix="edgekit-")
                file = save_graph(model, Path(self._folder.name))
            else:
                file = model
            self._session = open_session(file, threads=threads, prepack=prepack, exact=exact, profile=profile)
        except BaseException:
            self.close()
            raise
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        caches = {name: shape for name, shape in shapes.items() if name.startswith("past_")}
        self.vocab: int = self._session.get_outputs()[0].shape[-1]
        self.context: int = next(iter(caches.values()))[2]
        self.position = 0
        self._caches = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            for name, shape in caches.items()
        }

    def reset(self, position: int = 0) -> None:
        """Forgets the tokens from `position` on."""
        assert 0 <= position <= self.position
        self.position = position

    def prefill(self, ids: Tokens, *, chunk: int = 256, last_only: bool = False) -> Float32:
        """Logits [s, vocab] after each of the s tokens `ids`, which are appended to the cache, `chunk` at a time.

        With `last_only` [1, vocab] after the last one.

        Raises:
            UsageError: a token outside the vocabulary, or more tokens than the context holds.
        """
        tokens = self._checked(ids)
        parts = (self._run(tokens[start : start + chunk]) for start in range(0, len(tokens), chunk))
        return collect_logits(parts, len(tokens), self.vocab, last_only=last_only)

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""
        logits: Float32 = self._run(self._checked([token]))[0]
        return logits

    def logits(self, ids: Tokens, *, chunk: int = 256) -> Float32:
        """Logits [s, vocab] of a text on its own: what was in the cache is forgotten."""
        self.reset()
        return self.prefill(ids, chunk=chunk)

    def executed(self) -> list[tuple[str, str]]:
        """Name and operator of every node that ran, after ONNX Runtime's optimisation; to be asked once."""
        events = json.loads(Path(self._session.end_profiling()).read_bytes())
        nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_RAN)]
        return [(event["name"].removesuffix(_RAN), event["args"]["op_name"]) for event in nodes]

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

    def _checked(self, ids: Tokens) -> Int64:
        return check_tokens(ids, vocab=self.vocab, position=self.position, context=self.context)

    def _run(self, tokens: Int64) -> Float32:
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


def collect_logits(parts: Iterable[Float32], count: int, vocab: int, *, last_only: bool) -> Float32:
    """Logits [count, vocab] from parts [s, vocab] in turn, or the last row alone: [1, vocab].

    A part may lie where the next one will: it is copied before that is asked for.
    """
    logits = np.empty((1 if last_only else count, vocab), np.float32)
    done = 0
    for rows in parts:
        if last_only:
            logits[0] = rows[-1]
        else:
            logits[done : done + len(rows)] = rows
            done += len(rows)
    return logits


def check_tokens(ids: Tokens, *, vocab: int, position: int, context: int) -> Int64:
    """`ids` as an array, if they can follow `position` others.

    Raises:
        UsageError: none, a token outside the vocabulary, or more tokens than the context holds.
    """
    tokens = np.asarray(ids, np.int64).reshape(-1)
    if not tokens.size:
        raise UsageError("there are no tokens", hint="give one at least")
    outside = tokens[(tokens < 0) | (tokens >= vocab)]
    if outside.size:
        raise UsageError(f"the token {outside[0]} is outside the vocabulary", hint=f"from 0 to {vocab - 1}")
    if position + len(tokens) > context:
        raise UsageError(f"{position + len(tokens)} tokens do not fit the context", hint=f"it holds {context}")
    return tokens


def open_session(
    model: Path | bytes,
    *,
    threads: int,
    prepack: bool = False,
    exact: bool = False,
    data: Path | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """`model`, a file or one's bytes with its larger tensors in the folder `data`, on the CPU; see Session.

    Raises:
        Damaged: ONNX Runtime cannot load it.
    """
    options = session_options(threads, prepack=prepack, exact=exact)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if data is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
    try:
        return onnxruntime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            # It would store the transposed embedding of a tied head a second time; unfolded it is fused.
            disabled_optimizers=None if prepack else ["ConstantFolding"],
            # There is nothing to fall back to, and the attempt is printed to stdout.
            enable_fallback=0,
        )
    except RUNTIME_ERRORS as error:
        reason = "".join(character if character.isprintable() else "?" for character in str(error))
        name = data if isinstance(model, bytes) else model
        raise Damaged(f"ONNX Runtime cannot load {name}: {reason:.300}", hint="compile again") from error


def session_options(threads: int, *, prepack: bool = False, exact: bool = False) -> onnxruntime.SessionOptions:
    """How every session here runs; `Session` says what `prepack` and `exact` do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    # Of MatMulNBits: 1 computes in float32, 4 rounds activations to int8 with a scale for each group of weights.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
    return options
