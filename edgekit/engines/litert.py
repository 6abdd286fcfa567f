"""Write a quantized graph for LiteRT, and run it there: model.tflite, multiplied by XNNPACK.

A folder with model.tflite, model.litertlm (the same for LiteRT-LM, with the tokenizer), engine.json and probe. The
signatures are those that LiteRT-LM looks for, N being 128 or the context if that is shorter:

    prefill_N  tokens [1, N] int32, input_pos [N] int32, kv_cache_k_<layer>, kv_cache_v_<layer> -> the caches, logits
    decode     the same for one token

The first of `input_pos` counts, the others follow. A prefill of fewer tokens is filled up with any others: what they
leave in the cache lies behind the position, and is overwritten before it is seen.
"""

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs import Decoder
from edgekit.disk import appearing
from edgekit.engines import ARTIFACTS, Outside, Session, by_operator, installed_version
from edgekit.engines.litert_bundle import Words, write_bundle
from edgekit.engines.litert_weights import check_file, store_weights
from edgekit.engines.written import Written, describe, refused
from edgekit.errors import Unsupported, UsageError
from edgekit.graph import check_tokens, collect_logits
from edgekit.quantize import QuantGraph
from edgekit.units import Bytes

Float32 = npt.NDArray[np.float32]
Cache = dict[str, Any]

MODEL: Final = ARTIFACTS["litert"]
RUNTIMES: Final = ("2", "2.14")  # LiteRT 2, and tflite-runtime 2.14, which is restricted to what it has

_PREFILL: Final = 128
_RUNTIME: Final = "ai-edge-litert"
_CONVERTER: Final = "litert-torch"
_MOST_BYTES: Final = 2**31 - (1 << 24)  # of a flatbuffer, with room for the graph
_THREADS: Final = 2  # of the conversion
_PRODUCT: Final = "FULLY_CONNECTED"
_WIDENS: Final = "DEQUANTIZE"
_IN_MEMORY: Final = ":memory"  # packed weights are shared by the signatures, and kept in no file
_WORTH: Final = 8  # a prefill filled up to eight times its tokens is no faster than decoding them


def version() -> str:
    """The runtime and its version.

    Raises:
        TargetMissing: it is not installed.
    """
    return f"{_RUNTIME} {installed_version(_RUNTIME, extra='litert')}"


def check_size(decoder: Decoder) -> None:
    """Nothing, if a .tflite file can hold the model.

    Raises:
        Unsupported: it cannot.
    """
    values = sum(int(np.prod(shape)) for shape in decoder.tensor_shapes().values())
    if 4 * values > _MOST_BYTES:
        raise Unsupported(
            f"a model of {values / 1e6:.0f} million weights is converted in float32, and a .tflite file ends at 2 GiB",
            hint="another engine: --engine native, onnxruntime or executorch",
        )


def write_model(
    quant: QuantGraph,
    folder: Path,
    *,
    probe: bytes,
    words: Words,
    tokenizer: Path | None = None,
    runtime: str = RUNTIMES[0],
) -> Written:
    """Writes `quant`, in the codes that suit_xnnpack gave it, to `folder`. Equal codes give equal bytes.

    For tflite-runtime 2.14 there must be none of 4 bits. With a tokenizer.json there is model.litertlm too, except for
    tflite-runtime. Takes about 2 s a layer, and memory as forecast.py says.

    Raises:
        TargetMissing: LiteRT's runtime or converter is not installed.
        Unsupported: a model that a .tflite file does not hold.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"unknown LiteRT runtime '{runtime}'", hint=f"one of: {', '.join(RUNTIMES)}")
    made_with = version()
    decoder = quant.graph.decoder
    check_size(decoder)
    stored = store_weights(_convert(quant), quant, restricted=runtime == "2.14")
    file = folder / MODEL
    with appearing(file) as stream:
        stream.write(stored.model)
    if tokenizer is not None and runtime != "2.14":
        write_bundle(file, tokenizer, words, context=quant.graph.context, made_from=quant.made_from)
    written = Written(
        file=file,
        engine="litert",
        engine_version=made_with,
        kernels="runtime",
        made_from=quant.made_from,
        bos=words.bos,
        eos=words.eos,
        vocab=decoder.vocab,
        context=quant.graph.context,
        kv_format="f32",
        kv_bytes=Bytes(4 * 2 * decoder.layers * decoder.kv_heads * quant.graph.context * decoder.head_dim),
        weights_bytes=stored.weights_bytes,
        bytes_per_token=stored.bytes_per_token,
    )
    describe(written, probe=probe)
    return written


def open_model(written: Written, *, threads: int) -> Session:
    """A session that runs the model on `threads` threads.

    Raises:
        Damaged: not the model that is described beside it, or LiteRT does not take it.
        TargetMissing: LiteRT is not installed, or this version does not take the model.
    """
    this = version()
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.cpu_options import CpuOptions
    from ai_edge_litert.options import Options

    options = Options(cpu_options=CpuOptions(num_threads=threads, xnnpack_weight_cache_path=_IN_MEMORY))
    with _quiet() as said:
        try:
            check_file(written.file)
            model = CompiledModel.from_file(str(written.file), options=options)
            return LitertSession(model, written)
        except (RuntimeError, ValueError, KeyError) as error:
            raise refused(written, this, f"{error} {said()}".strip()) from error


def nodes_outside(written: Written) -> tuple[Outside, ...]:
    """What XNNPACK does not run: LiteRT's own kernels do, on one thread. And products of widened codes, wherever.

    Raises:
        TargetMissing: LiteRT is not installed.
    """
    version()
    from ai_edge_litert.interpreter import Interpreter

    with _quiet():
        interpreter = Interpreter(str(written.file), num_threads=1)
        interpreter.allocate_tensors()
        nodes = interpreter._get_ops_details()
        names = {each["index"]: each["name"] for each in interpreter.get_tensor_details() if each["dtype"] == np.int8}
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    makers = {output: node for node in nodes if node["op_name"] != "DELEGATE" for output in node["outputs"].tolist()}
    inside: set[int] = set()
    for delegate in delegates:
        given = set(delegate["inputs"].tolist())
        open_tensors = delegate["outputs"].tolist()
        while open_tensors:
            node = makers[open_tensors.pop()]
            if node["index"] not in inside:
                inside.add(node["index"])
                open_tensors += [tensor for tensor in node["inputs"].tolist() if tensor in makers.keys() - given]
    outside: list[tuple[str, str | None]] = []
    for node in makers.values():
        is_product = node["op_name"] == _PRODUCT
        weights = node["inputs"].tolist()[1] if is_product else None
        widens = is_product and makers.get(weights, node)["op_name"] == _WIDENS
        matrix = names.get(makers[weights]["inputs"].tolist()[0] if widens else weights)
        if node["index"] not in inside or (widens and matrix is not None):
            outside.append((node["op_name"], matrix))
    return by_operator(outside)


class LitertSession:
    """The model in LiteRT. Keys and values stay in its buffers, which change places at every run."""

    def __init__(self, model: Any, written: Written) -> None:
        """
        Raises:
            ValueError, KeyError, RuntimeError: the model is not the one that is described.
        """
        self.vocab = written.vocab
        self.context = written.context
        self.position = 0
        self._model, self._written = model, written
        signatures = model.get_signature_list()
        prefills = [name for name in signatures if name.startswith("prefill_")]
        if sorted([*prefills, "decode"]) != sorted(signatures) or len(prefills) != 1:
            raise ValueError(f"it has the signatures {', '.join(sorted(signatures))}")
        self._prefill = prefills[0]
        self._rows = {"decode": 1, self._prefill: model.get_input_tensor_details(self._prefill)["tokens"]["shape"][1]}
        shapes = {name: details["shape"] for name, details in model.get_input_tensor_details("decode").items()}
        caches = {name: shape for name, shape in shapes.items() if name.startswith("kv_cache_")}
        if 4 * sum(int(np.prod(shape)) for shape in caches.values()) != written.kv_bytes:
            raise ValueError("its cache has another size than is said beside it")
        if model.get_output_tensor_details("decode")["logits"]["shape"] != [1, 1, written.vocab]:
            raise ValueError("its vocabulary has another size than is said beside it")
        self._caches = [
            {name: model.create_input_buffer_by_name("decode", name) for name in caches},
            {name: model.create_output_buffer_by_name("decode", name) for name in caches},
        ]
        for name, shape in caches.items():
            self._caches[0][name].write(np.zeros(shape, np.float32))
        self._inputs = {
            name: {key: model.create_input_buffer_by_name(name, key) for key in ("tokens", "input_pos")}
            for name in self._rows
        }
        self._logits = {name: model.create_output_buffer_by_name(name, "logits") for name in self._rows}

    def reset(self, position: int = 0) -> None:
        """Forgets every token from `position` on."""
        assert 0 <= position <= self.position
        self.position = position

    def prefill(self, ids: Sequence[int], *, last_only: bool = False) -> Float32:
        """Logits [s, vocab] after each of the tokens, which are appended to the cache; or [1, vocab] after the last.

        Raises:
            UsageError: a token outside the vocabulary, or more tokens than the context holds.
        """
        # LiteRT looks up whatever lies at a token outside.
        tokens = check_tokens(ids, vocab=self.vocab, position=self.position, context=self.context).astype(np.int32)
        return collect_logits(self._parts(tokens), len(tokens), self.vocab, last_only=last_only)

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""
        logits: Float32 = self.prefill([token])[0]
        return logits

    def close(self) -> None:
        """Frees what the session holds."""
        self._model.close()
        self._caches, self._inputs, self._logits = [], {}, {}

    def _parts(self, tokens: npt.NDArray[np.int32]) -> Iterator[Float32]:
        """Logits of the tokens, of as many at once as a signature takes."""
        most = self._rows[self._prefill]
        while len(tokens):
            # Near the end the rows that fill up would not fit the cache.
            fits = self.position + most <= self.context and len(tokens) * _WORTH > most
            name = self._prefill if fits else "decode"
            count = min(len(tokens), self._rows[name])
            yield self._run(name, tokens[:count])
            tokens = tokens[count:]

    def _run(self, name: str, tokens: npt.NDArray[np.int32]) -> Float32:
        """
        Raises:
            Damaged, TargetMissing: LiteRT refuses the call.
        """
        rows = self._rows[name]
        inputs = self._inputs[name]
        inputs["tokens"].write(np.pad(tokens, (0, rows - len(tokens)))[None])
        inputs["input_pos"].write(np.arange(self.position, self.position + rows, dtype=np.int32))
        before, after = self._caches
        try:
            self._model.run_by_name(name, {**inputs, **before}, {"logits": self._logits[name], **after})
        except RuntimeError as error:
            raise refused(self._written, version(), error) from error
        self._caches.reverse()
        self.position += len(tokens)
        logits: Float32 = self._logits[name].read(rows * self.vocab, np.float32)
        return logits.reshape(rows, self.vocab)[: len(tokens)]


def _convert(quant: QuantGraph) -> bytes:
    """The decoder as a .tflite file with its values in float32."""
    installed_version(_CONVERTER, extra="litert")
    with _quiet(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from edgekit.engines.litert_convert import convert

        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            file = Path(folder) / MODEL
            convert(quant, file, rows=min(_PREFILL, quant.graph.context), threads=_THREADS)
            return file.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """While this lasts what LiteRT's C++ says on stderr is kept; what it gave tells the errors in it."""
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:

            def said() -> str:
                kept.seek(0)
                lines = kept.read(1 << 16).decode("utf-8", "replace").splitlines()
                return " ".join(line for line in lines if line.startswith("ERROR"))

            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
