"""Write a compiled program as an ExecuTorch .pte: one delegate, EdgekitBackend, whose payload is the program.

    forward     tokens int64 [1, 1 to context], input_pos int64 [1]  ->  logits float [1, vocab] of the last
    all_logits  tokens int64 [1, 1 to rows], input_pos int64 [1]     ->  logits float [1, s, vocab]

Two methods, because apps want one row and a comparison wants all: they share the payload in the file, each has keys and
values of its own when it is loaded. Constant methods say what ExecuTorch's LLM runner asks for. torch sees one operator
and no weights. Equal programs give equal bytes.
"""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from edgekit.disk import appearing
from edgekit.engines.executorch_delegate import ALL_LOGITS, BACKEND, FORWARD, quiet

with quiet():
    import torch
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
    from executorch.exir.backend.compile_spec_schema import CompileSpec
    from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult

# Sections of the program are aligned to it, so that they begin with a page where the file is mapped.
_ALIGN_BYTES: Final = 65536

_payload: ContextVar[bytes] = ContextVar("payload")


def write_pte(
    program: bytes, file: Path, *, vocab: int, context: int, rows: int, constants: Mapping[str, int | bool | list[int]]
) -> None:
    """Writes `program` (model.edge) to `file`, with a method for each of `constants`. Takes no copy of the program."""
    with quiet(), _set(program):
        methods = {
            FORWARD: _export(_Decoder(vocab, has_all=False), context),
            ALL_LOGITS: _export(_Decoder(vocab, has_all=True), rows),
        }
        specs = [CompileSpec("context", struct.pack("<I", context))]
        lowered = to_edge_transform_and_lower(
            methods,
            partitioner={name: [_Whole(specs)] for name in methods},
            constant_methods=dict(constants),
        )
        made = lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=_ALIGN_BYTES))
        with appearing(file) as stream:
            made.write_to_file(stream)


@torch.library.custom_op("edgekit::decoder", mutates_args=())
def _decode(tokens: torch.Tensor, input_pos: torch.Tensor, vocab: int, has_all: bool) -> torch.Tensor:
    raise NotImplementedError("the delegate does it")


@_decode.register_fake
def _(tokens: torch.Tensor, input_pos: torch.Tensor, vocab: int, has_all: bool) -> torch.Tensor:
    shape = (1, tokens.shape[1], vocab) if has_all else (1, vocab)
    return tokens.new_empty(shape, dtype=torch.float32)


class _Decoder(torch.nn.Module):
    def __init__(self, vocab: int, *, has_all: bool) -> None:
        super().__init__()
        self.vocab, self.has_all = vocab, has_all

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = _decode(tokens, input_pos, self.vocab, self.has_all)
        return logits


def _export(module: torch.nn.Module, most: int) -> torch.export.ExportedProgram:
    tokens, position = torch.zeros((1, 2), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    # A dimension of 1 alone would be a constant.
    count = torch.export.Dim("count", min=1, max=max(2, most))
    return torch.export.export(module, (tokens, position), dynamic_shapes=({1: count}, {}), strict=True)


class EdgekitBackend(BackendDetails):  # type: ignore[misc]  # executorch has no types
    """Found by its name, which is the delegate's."""

    @staticmethod
    def preprocess(edge_program: Any, compile_specs: Any) -> Any:
        return PreprocessResult(processed_bytes=_payload.get())


class _Whole(Partitioner):  # type: ignore[misc]
    """Everything is one partition."""

    def __init__(self, specs: list[Any]) -> None:
        super().__init__()
        self._specs = specs

    def partition(self, program: Any) -> Any:
        for node in program.graph.nodes:
            if node.op == "call_function":
                node.meta["delegation_tag"] = BACKEND
        return PartitionResult(program, {BACKEND: DelegationSpec(BACKEND, self._specs)})


@contextlib.contextmanager
def _set(program: bytes) -> Iterator[None]:
    token = _payload.set(program)
    try:
        yield
    finally:
        _payload.reset(token)
