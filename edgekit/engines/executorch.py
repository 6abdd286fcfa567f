"""Write a model for ExecuTorch, and run it there: model.pte, in which edgekit's kernels are one delegate.

A folder with model.pte, engine.json and probe; the tokenizer.json of the bundle lies beside them. An app loads the same
file with its own ExecuTorch once EdgekitBackend is registered in it (executorch_delegate.py).
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs import Decoder
from edgekit.disk import UNFINISHED
from edgekit.engines import ARTIFACTS, Outside, by_operator
from edgekit.engines.executorch_delegate import (
    ALL_LOGITS,
    FORWARD,
    import_runtime,
    load_runtime,
    quiet,
    take_refusal,
    version,
)
from edgekit.engines.native import Extras, Progress, write_program
from edgekit.engines.written import Written, describe, refused
from edgekit.errors import Damaged
from edgekit.graph import check_tokens, collect_logits
from edgekit.plan import Plan
from edgekit.quantize import QuantGraph

__all__ = ["nodes_outside", "open_model", "version", "write_model"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MODEL: Final = ARTIFACTS["executorch"]
_IDENTIFIER: Final = b"ET12"  # of the flatbuffer, program.fbs


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
    """Writes the planned program to `folder` as model.pte. Takes the memory of the program once, beside torch's.

    Raises:
        TargetMissing: ExecuTorch is not installed, or there is no C++ compiler to build its delegate with.
        DoesNotFit: more end-of-text ids than a program has room for.
    """
    load_runtime()  # before the long work
    from edgekit.engines.executorch_program import write_pte

    decoder = quant.graph.decoder
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as unfinished:
        program = Path(unfinished) / ARTIFACTS["native"]
        write_program(plan, quant, Extras(b"", b"", bos, eos), program, progress=progress)
        payload = program.read_bytes()
    constants = runner_constants(decoder, plan.context, bos=bos, eos=eos)
    file = folder / MODEL
    write_pte(payload, file, vocab=decoder.vocab, context=plan.context, rows=plan.max_rows, constants=constants)
    written = Written(
        file=file,
        engine="executorch",
        engine_version=version(),
        kernels="edgekit",
        made_from=quant.made_from,
        bos=bos,
        eos=eos,
        vocab=decoder.vocab,
        context=plan.context,
        kv_format=plan.kv,
        kv_bytes=plan.kv_bytes,
        weights_bytes=plan.weights_bytes,
        bytes_per_token=plan.bytes_per_token,
    )
    describe(written, probe=probe)
    return written


def runner_constants(
    decoder: Decoder, context: int, *, bos: int | None, eos: tuple[int, ...]
) -> dict[str, int | bool | list[int]]:
    """What ExecuTorch's LLM runner asks a model for."""
    constants: dict[str, int | bool | list[int]] = {
        "get_vocab_size": decoder.vocab,
        "get_max_seq_len": context,
        "get_max_context_len": context,
        "get_n_layers": decoder.layers,
        "get_eos_ids": list(eos),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": True,
    }
    return constants if bos is None else {**constants, "get_bos_id": bos}


def open_model(written: Written, *, threads: int) -> "Session":
    """A session that runs the model on `threads` threads.

    Raises:
        Damaged: not what the engine wrote.
        TargetMissing: the ExecuTorch that is installed does not take it, or none is.
    """
    is_portable = written.kernels == "runtime"
    with written.file.open("rb") as stream:
        if stream.read(8)[4:] != _IDENTIFIER:  # ExecuTorch would end the process
            raise refused(written, version(), "it does not begin as a program for ExecuTorch does")
    runtime = import_runtime() if is_portable else load_runtime()
    if is_portable:
        runtime._unsafe_reset_threadpool(threads)
    checked = runtime.Verification.InternalConsistency
    take_refusal()  # of another model
    try:
        program = runtime._load_program(str(written.file), program_verification=checked)
        vocab, context = (program.load_method(name).call()[0] for name in ("get_vocab_size", "get_max_context_len"))
        rows, shape = _most(program.method_meta(FORWARD if is_portable else ALL_LOGITS))
        is_ours = shape == (1, rows, written.vocab) and rows > 0
        if not is_portable:
            is_ours &= _most(program.method_meta(FORWARD)) == (written.context, (1, written.vocab))
    except (RuntimeError, IndexError) as error:
        raise refused(written, version(), take_refusal() or error) from error
    if not is_ours or (vocab, context) != (written.vocab, written.context):
        raise Damaged(f"{written.file} is not the model that is described beside it", hint="compile again")
    return Session(written, program, threads=threads, rows=rows)


def nodes_outside(written: Written) -> tuple[Outside, ...]:
    """What XNNPACK does not execute: ExecuTorch's portable kernels do. They have none that multiply by codes.

    Raises:
        TargetMissing: ExecuTorch is not installed.
    """
    if written.kernels == "edgekit":
        return ()
    import_runtime()
    with quiet():
        from executorch.exir._serialize._program import deserialize_pte_binary
        from executorch.exir.schema import KernelCall

        plans = deserialize_pte_binary(written.file.read_bytes()).program.execution_plan
    plan = next(plan for plan in plans if plan.name == FORWARD)
    calls = [call.instr_args for chain in plan.chains for call in chain.instructions]
    return by_operator([(plan.operators[call.op_index].name, None) for call in calls if isinstance(call, KernelCall)])


def _most(meta: Any) -> tuple[int, tuple[int, ...]]:
    """How many tokens a method takes, and the shape of the logits that it then gives."""
    return meta.input_tensor_meta(0).sizes()[1], tuple(meta.output_tensor_meta(0).sizes())


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """While this lasts the delegate starts so many threads."""
    before = os.environ.get("EDGEKIT_THREADS")
    os.environ["EDGEKIT_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["EDGEKIT_THREADS"]
        else:
            os.environ["EDGEKIT_THREADS"] = before


class Session:
    """A loaded method with its cache.

    Of edgekit's kernels there are two methods, for the last token's logits and for those of up to `rows` tokens, each
    with a cache of its own: with an empty one `prefill` takes the method it needs, else what is there has to do.
    """

    def __init__(self, written: Written, program: Any, *, threads: int, rows: int) -> None:
        """
        Raises:
            Damaged, TargetMissing: ExecuTorch refuses the method.
        """
        import torch

        self._written, self._program, self._threads, self._rows = written, program, threads, rows
        self._has_two = written.kernels == "edgekit"
        self._tensor, self._input_pos = torch.from_numpy, torch.zeros(1, dtype=torch.int64)
        self.vocab, self.context, self.position = written.vocab, written.context, 0
        self._method: Any = None
        self._name = ""
        self._load(FORWARD)

    def reset(self, position: int = 0) -> None:
        """Forgets the tokens from `position` on."""
        assert 0 <= position <= self.position
        self.position = position

    def prefill(self, ids: Sequence[int], *, last_only: bool = False) -> Float32:
        """Logits [s, vocab] after each of the tokens, which are appended to the cache; or [1, vocab] after the last.

        Raises:
            UsageError: a token outside the vocabulary, or more tokens than the context holds.
        """
        tokens = check_tokens(ids, vocab=self.vocab, position=self.position, context=self.context)
        if self._has_two and self.position == 0:
            self._load(FORWARD if last_only else ALL_LOGITS)
        at_once = self._at_once(last_only=last_only)
        parts = (self._run(tokens[start : start + at_once]) for start in range(0, len(tokens), at_once))
        return collect_logits(parts, len(tokens), self.vocab, last_only=last_only)

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""
        logits: Float32 = self.prefill([token], last_only=True)[0]
        return logits

    def close(self) -> None:
        """Frees the cache and the threads."""
        self._method = self._program = None

    def _load(self, name: str) -> None:
        if name == self._name:
            return
        self._method, self._name = None, ""  # one cache is freed before there is another
        try:
            with _threads(self._threads):
                self._method = self._program.load_method(name)
        except RuntimeError as error:
            raise refused(self._written, version(), take_refusal() or error) from error
        self._name = name

    def _at_once(self, *, last_only: bool) -> int:
        """How many tokens a call of the loaded method may have."""
        if self._has_two and self._name == FORWARD:
            return self.context if last_only else 1  # it gives one row
        return self._rows

    def _run(self, tokens: Int64) -> Float32:
        """Logits in the method's own memory, where they stay until the next call.

        Raises:
            Damaged, TargetMissing: ExecuTorch refuses the call.
        """
        self._input_pos[0] = self.position
        try:
            result = self._method.call((self._tensor(tokens)[None], self._input_pos), clone_outputs=False)
        except RuntimeError as error:
            raise refused(self._written, version(), take_refusal() or error) from error
        self.position += len(tokens)
        rows: Float32 = result[0].numpy()
        return rows.reshape(-1, self.vocab)
