"""Ways to choose the codes and scales of a weight matrix; one a file, found by name.

`methods/<name>.py` defines METHOD. Rows are quantized each on its own, so a matrix may come in blocks of rows.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import Unsupported, one_of
from edgekit.scheme import Scheme

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
UInt16 = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a matrix (n, k) is multiplied by, over `tokens` tokens x: the means of x x^T, [k, k], and of x, [k]."""

    second: Float32
    mean: Float32
    tokens: int


@dataclass(frozen=True, slots=True)
class Method:
    """Codes int8 [n, k] and bf16 scales (their bits, uint16 [n, groups]) for weights [n, k], by `quantize_matrix`.

    `needs_inputs`: of no use without the inputs of the linear layers; a matrix that only looks up rows has none.
    `keeps_codes`: a matrix whose codes the scheme holds already keeps them.
    `corrects_biases`: what rounding adds to a layer's mean result is taken off its bias afterwards.
    """

    quantize_matrix: Callable[[Float32, Scheme, Inputs | None], tuple[Int8, UInt16]]
    needs_inputs: bool = False
    corrects_biases: bool = False
    keeps_codes: bool = False


def known_methods() -> tuple[str, ...]:
    """Every method with a file in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        Unsupported: no such method.
    """
    if name not in known_methods():
        raise Unsupported(f"unknown quantization method '{name}'", hint=one_of(known_methods()))
    method = importlib.import_module(f"edgekit.methods.{name}").METHOD
    assert isinstance(method, Method)
    return method
