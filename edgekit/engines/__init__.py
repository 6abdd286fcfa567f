"""The engines that execute a compiled model, one a file: what each writes, and how the host runs it.

native       model.edge, run by the static edgekit-run on any device (edgekit/measure.py)
onnxruntime  model.onnx, run on this machine by `python -m edgekit.engines.host`, which takes the verbs and options of
             edgekit-run and answers with the same JSON
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import Unsupported, one_of

Float32 = npt.NDArray[np.float32]

ENGINES = ("native", "onnxruntime")


class Session(Protocol):
    """A model with a cache, which the host runs."""

    vocab: int
    context: int
    position: int

    def reset(self, position: int = 0) -> None:
        """Forgets every token from `position` on."""

    def prefill(self, ids: Sequence[int]) -> Float32:
        """Logits [s, vocab] after each of the tokens, which are appended to the cache."""

    def decode(self, token: int) -> Float32:
        """Logits [vocab] after `token`, which is appended to the cache."""

    def close(self) -> None:
        """Frees what the session holds."""


def check_engine(name: str) -> str:
    """`name`, if there is an engine of that name.

    Raises:
        Unsupported: there is none.
    """
    if name not in ENGINES:
        raise Unsupported(f"unknown engine '{name}'", hint=one_of(ENGINES))
    return name
