"""Ways to choose the codes and scales of a weight matrix; one a file, found by name.

`methods/<name>.py` defines `quantize_matrix(weights, scheme, *, importance)`: codes int8 [n, k] and bf16 scales (their
bits, uint16 [n, groups]) for float32 weights [n, k]. `importance` [k], if given, weighs the error of each column.
"""

import importlib
import pkgutil
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import Unsupported, one_of
from edgekit.scheme import Scheme

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
UInt16 = npt.NDArray[np.uint16]


class QuantizeMatrix(Protocol):
    """Codes [n, k] and the bits of the bf16 scales [n, groups] of a matrix, each row on its own."""

    def __call__(
        self, weights: Float32, scheme: Scheme, *, importance: Float32 | None = None
    ) -> tuple[Int8, UInt16]: ...


def known_methods() -> tuple[str, ...]:
    """Every method with a file in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_method(name: str) -> QuantizeMatrix:
    """The method of that name.

    Raises:
        Unsupported: no such method.
    """
    if name not in known_methods():
        raise Unsupported(f"unknown quantization method '{name}'", hint=one_of(known_methods()))
    method: QuantizeMatrix = importlib.import_module(f"edgekit.methods.{name}").quantize_matrix
    return method
