"""A compiled program as the one node of an ONNX graph, which ONNX Runtime runs with edgekit's kernels.

A folder with model.onnx and model.edge, beside them what every engine writes (written.py). The node is
`edgekit::Decoder` (kernels/adapters/onnxruntime/decoder.h): its first input is model.edge as external data, which ONNX
Runtime maps, and it holds the keys and values itself. The operator is in libedgekit_onnxruntime.so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from edgekit.engines.built import OPERATORS, find_built
from edgekit.engines.native import Extras, Progress, write_program
from edgekit.engines.written import Written, describe, refused
from edgekit.errors import Damaged
from edgekit.graph import RUNTIME_ERRORS, check_tokens, collect_logits, session_options
from edgekit.onnx_files import load_model, write_graph
from edgekit.plan import Plan
from edgekit.quantize import QuantGraph
from edgekit.replies import elf_machine
from edgekit.target import HOST, load_target

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

DOMAIN: Final = "edgekit"
NODE: Final = "Decoder"

_MODEL: Final = "model.onnx"
_PROGRAM: Final = "model.edge"
# Of no importance to the node, and old enough for ONNX Runtime 1.17, the first with all that the operator needs.
_OPSET: Final = 17
_IR_VERSION: Final = 8
_ROWS_AT_ONCE: Final = 256  # of logits


def version() -> str:
    """The runtime and its version."""
    return f"onnxruntime {onnxruntime.__version__}"


def write_model(
    plan: Plan,
    quant: QuantGraph,
    folder: Path,
    *,
    probe: bytes,
    bos: int | None,
    eos: tuple[int, ...],
    progress: Progress | None = None,
) -> Written:
    """Writes program and graph to `folder`. Equal codes give equal bytes.

    Raises:
        DoesNotFit: more end-of-text ids than a program has room for.
    """
    # Text and probe are the host's matter here: tokenizer.json and probe lie beside.
    write_program(plan, quant, Extras(b"", b"", bos, eos), folder / _PROGRAM, progress=progress)
    vocab = quant.graph.decoder.vocab
    write_graph(_graph((folder / _PROGRAM).stat().st_size, vocab, plan.context), folder / _MODEL)
    written = Written(
        file=folder / _MODEL,
        engine="onnxruntime",
        engine_version=version(),
        kernels="edgekit",
        made_from=quant.made_from,
        bos=bos,
        eos=eos,
        vocab=vocab,
        context=plan.context,
        kv_format=plan.kv,
        kv_bytes=plan.kv_bytes,
        weights_bytes=plan.weights_bytes,
        bytes_per_token=plan.bytes_per_token,
    )
    describe(written, probe=probe)
    return written


class NodeSession:
    """The node in a session of ONNX Runtime, which runs it on its own threads."""

    def __init__(self, written: Written, *, threads: int) -> None:
        """Opens the model.

        Raises:
            Damaged: it refers to anything but its own program, or is damaged.
            TargetMissing: this version of ONNX Runtime does not take it, or there is no operator for this machine.
        """
        _check(written)
        library = _operators(written)
        self._written = written
        self.vocab, self.context, self.position = written.vocab, written.context, 0
        try:
            options = session_options(threads)
            options.log_severity_level = 4  # what goes wrong is in the exceptions
            options.add_session_config_entry("edgekit.threads", str(threads))
            options.register_custom_ops_library(str(library))
            self._session = onnxruntime.InferenceSession(
                written.file, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except RUNTIME_ERRORS as error:
            raise refused(written, version(), error) from error

    def reset(self, position: int = 0) -> None:
        """Forgets the tokens from `position` on."""
        assert 0 <= position <= self.position
        self.position = position

    def prefill(self, ids: Sequence[int], *, last_only: bool = False) -> Float32:
        """Logits [s, vocab] after each of the s tokens `ids`, which are appended to the cache.

        With `last_only` [1, vocab] after the last one, and no others are computed.

        Raises:
            UsageError: a token outside the vocabulary, or more tokens than the context holds.
        """
        tokens = self._checked(ids)
        at_once, keep = (len(tokens), 1) if last_only else (_ROWS_AT_ONCE, 0)
        parts = (self._run(tokens[start : start + at_once], keep=keep) for start in range(0, len(tokens), at_once))
        return collect_logits(parts, len(tokens), self.vocab, last_only=last_only)

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""
        logits: Float32 = self._run(self._checked([token]), keep=1)[0]
        return logits

    def close(self) -> None:
        """Gives the threads, the cache and the mapped program back."""
        del self._session

    def _checked(self, ids: Sequence[int]) -> Int64:
        return check_tokens(ids, vocab=self.vocab, position=self.position, context=self.context)

    def _run(self, tokens: Int64, *, keep: int = 0) -> Float32:
        """Logits of the last `keep` tokens; of all, if it is 0."""
        numbers = {"position": self.position, "num_logits_to_keep": keep}
        inputs = {"input_ids": tokens[None], **{name: np.array([number], np.int64) for name, number in numbers.items()}}
        try:
            (logits,) = self._session.run(None, inputs)
        except RUNTIME_ERRORS as error:
            raise refused(self._written, version(), error) from error
        self.position += len(tokens)
        found: Float32 = logits[0]
        return found


def _graph(program_bytes: int, vocab: int, context: int) -> ir.Model:
    """The node with its program as external data."""
    program = ir.Value(name="program", shape=ir.Shape([program_bytes]), type=ir.TensorType(ir.DataType.UINT8))
    program.const_value = ir.ExternalTensor(
        _PROGRAM, 0, program_bytes, ir.DataType.UINT8, shape=ir.Shape([program_bytes]), name="program"
    )
    shapes: dict[str, list[int | str]] = {"input_ids": [1, "s"], "position": [1], "num_logits_to_keep": [1]}
    inputs = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))
        for name, shape in shapes.items()
    ]
    node = ir.node(NODE, [program, *inputs], {"context": context}, domain=DOMAIN, name="decoder")
    (logits,) = node.outputs
    logits.name, logits.shape = "logits", ir.Shape([1, "rows", vocab])
    logits.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, [logits], nodes=[node], initializers=[program], name=NODE, opset_imports={"": _OPSET, DOMAIN: 1}
    )
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="edgekit")


def _operators(written: Written) -> Path:
    """The operators beside the model, if they are for this machine; else those that came with edgekit."""
    host = load_target(HOST)
    beside = written.file.with_name(OPERATORS)
    if beside.is_file() and elf_machine(beside) == host.architecture:
        return beside
    return find_built(OPERATORS, host.triple)


def _check(written: Written) -> None:
    """Nothing, if the model is what `write_model` writes and all of it lies in its folder.

    Raises:
        Damaged: it is not.
    """
    model = load_model(written.file, data=written.file.with_name(_PROGRAM))
    expected = _graph(written.file.with_name(_PROGRAM).stat().st_size, written.vocab, written.context)
    if ir.to_proto(model) != ir.to_proto(expected):
        raise Damaged(f"{written.file} is not the model that is described beside it", hint="compile again")
