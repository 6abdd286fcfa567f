"""The engines that execute a compiled model, one a file: what each writes, and how the host runs it.

native       model.edge, run by the static edgekit-run on any device (edgekit/measure.py)
onnxruntime  model.onnx, run by ONNX Runtime; with edgekit's kernels it is one node whose data is a model.edge
executorch   model.pte, run by ExecuTorch
litert       model.tflite, run by LiteRT

All but native run on this machine by `python -m edgekit.engines.host`, which takes the verbs and options of edgekit-run
and answers with the same JSON. Each is a module with the functions of `Engine`.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from edgekit.errors import TargetMissing, Unsupported, UsageError, one_of

if TYPE_CHECKING:
    from edgekit.engines.written import Written

Float32 = npt.NDArray[np.float32]

# The file that each engine runs.
ARTIFACTS: Final[Mapping[str, str]] = {
    "native": "model.edge",
    "onnxruntime": "model.onnx",
    "executorch": "model.pte",
    "litert": "model.tflite",
}
ENGINES: Final = tuple(ARTIFACTS)
# Whose matrix products an engine can run, best first: edgekit's, or those that its runtime brings.
_KERNELS: Final[Mapping[str, tuple[str, ...]]] = {
    "native": ("edgekit",),
    "onnxruntime": ("edgekit", "runtime"),
    "executorch": ("edgekit", "runtime"),
    "litert": ("runtime",),
}

# What compiling for an engine takes beside edgekit's own dependencies; the extra of the same name has it.
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "executorch": ("executorch", "torch", "torchao"),
    "litert": ("ai-edge-litert", "litert-torch", "litert-lm-builder", "torch"),
}


@dataclass(frozen=True, slots=True)
class Outside:
    """Nodes of one operator, of those that decode a token, that run outside the fast kernels.

    `matrices` are those in codes that they multiply by: widened, or by kernels that are slow.
    """

    operator: str
    count: int
    matrices: tuple[str, ...] = ()


class Engine(Protocol):
    """What the module of an engine offers beside writing: its runtime is imported when one of these is called."""

    def version(self) -> str:
        """The runtime and its version, such as "onnxruntime 1.32.0".

        Raises:
            TargetMissing: it is not installed.
        """

    def open_model(self, written: "Written", *, threads: int) -> "Session":
        """A session that runs the model on `threads` threads.

        Raises:
            Damaged: not what the engine wrote.
            TargetMissing: the runtime that is installed does not take it, or none is.
        """

    def nodes_outside(self, written: "Written") -> tuple[Outside, ...]:
        """What of the model the runtime does not run by its fast kernels; of edgekit's, nothing is outside.

        Raises:
            Damaged, TargetMissing: as `open_model`.
        """


class Session(Protocol):
    """A model with a cache, which the host runs."""

    vocab: int
    context: int
    position: int

    def reset(self, position: int = 0) -> None:
        """Forgets every token from `position` on."""

    def prefill(self, ids: Sequence[int], *, last_only: bool = False) -> Float32:
        """Logits [s, vocab] after each of the tokens, which are appended to the cache; [1, vocab] after the last alone.

        With edgekit's kernels the last alone cost less.
        """

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""

    def close(self) -> None:
        """Frees what the session holds."""


def by_operator(nodes: Sequence[tuple[str, str | None]]) -> tuple[Outside, ...]:
    """Nodes, each an operator and the matrix in codes that it multiplies by, gathered: products first, then many."""
    rows = {operator: Outside(operator, 0) for operator, _ in nodes}
    for operator, matrix in nodes:
        row = rows[operator]
        rows[operator] = Outside(operator, row.count + 1, row.matrices if matrix is None else (*row.matrices, matrix))
    return tuple(sorted(rows.values(), key=lambda row: (not row.matrices, -row.count, row.operator)))


def check_engine(name: str) -> str:
    """`name`, if there is an engine of that name.

    Raises:
        Unsupported: there is none.
    """
    if name not in ENGINES:
        raise Unsupported(f"unknown engine '{name}'", hint=one_of(ENGINES))
    return name


def find_engine(name: str) -> Engine:
    """The engine of that name that the host runs.

    Raises:
        Unsupported: there is none.
    """
    if name == "native" or name not in ENGINES:
        raise Unsupported(f"'{name}' is no engine that the host runs", hint=one_of(ENGINES[1:]))
    return cast("Engine", importlib.import_module(f"edgekit.engines.{name}"))


def check_installed(engine: str) -> None:
    """Nothing, if everything is installed that compiling for the engine takes. Writing would find out too, but late.

    Raises:
        TargetMissing: it is not.
    """
    for package in _PACKAGES.get(engine, ()):
        installed_version(package, extra=engine)


def installed_version(package: str, *, extra: str) -> str:
    """The version of a package that one of edgekit's extras has.

    Raises:
        TargetMissing: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise TargetMissing(f"{package} is not installed", hint=f"pip install 'edgekit[{extra}]'") from error


def kernels_of(engine: str, *, portable: bool) -> str:
    """Whose kernels the engine runs a model with: "edgekit" or, if it is to be portable, "runtime".

    Raises:
        Unsupported: there is no such engine.
        UsageError: it has none but edgekit's.
    """
    offered = _KERNELS[check_engine(engine)]
    if portable and "runtime" not in offered:
        raise UsageError(f"the engine {engine} has no kernels but edgekit's", hint="leave --portable out")
    return "runtime" if portable else offered[0]
