"""A weight matrix in codes that another program chose, and which scheme holds them.

A value is scale * code, where the code has had its zero point taken off. The product of an f16 scale and a code of 8
bits is exact in float32, so these values do not depend on who computes them.
"""

import abc
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import Damaged, Unsupported
from edgekit.scheme import GROUPS, Scheme

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]

# Schemes that hold whole codes, the smallest first; those with an offset of 1/2 hold none.
_HOLDING = ("q3", "q4", "q8")


@dataclass(frozen=True, eq=False)
class Stored(abc.ABC):
    """A tensor that does not lie in its file as it is read. `dtype` is for the person, `bytes` what it takes there."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @abc.abstractmethod
    def values(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) in float32."""


@dataclass(frozen=True, eq=False)
class Packed(Stored):
    """A matrix (n, k) in codes, `group` columns a scale."""

    shape: tuple[int, int]
    bits: int
    group: int

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> tuple[npt.NDArray[Any], Float32]:
        """Codes [stop - start, k], integers, and scales [stop - start, groups], of rows [start, stop)."""

    @property
    @abc.abstractmethod
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code that the matrix can have."""

    @functools.cached_property
    def columns(self) -> Int64:
        """The group of each column."""
        return np.arange(self.shape[1], dtype=np.int64) // self.group

    @functools.cached_property
    def refusal(self) -> str | None:
        """Why no scheme holds the codes with the bits they have; None if one does."""
        low, high = self.code_range
        if not self._is_in_order:
            return "the columns of its groups are mixed (desc_act)"
        if self._group is None:
            return f"it has groups of {self.group}"
        fewest = next((format for format in _HOLDING if _reaches(format, low, high)), None)
        if fewest is None:
            return f"its codes reach from {low} to {high}"
        if Scheme(fewest, 32).bits > max(self.bits, 3):
            return (
                f"its zero points make codes from {low} to {high}, which only {fewest} holds"
                f" (--recipe {fewest}g{self._group},head=f16,method=kept)"
            )
        return None

    @property
    def natural(self) -> Scheme:
        """The scheme that holds the codes, or one as large where none does."""
        low, high = self.code_range
        formats = [format for format in _HOLDING if Scheme(format, 32).bits >= self.bits]
        if self.refusal is None:
            formats = [format for format in _HOLDING if _reaches(format, low, high)]
        return Scheme(formats[0], self._group or GROUPS[0])

    def holds(self, scheme: Scheme) -> bool:
        """True if the scheme has every code and a scale for every group of the matrix."""
        if scheme.is_float or not self._is_in_order or not _reaches(scheme.format, *self.code_range):
            return False
        return self.group % scheme.group == 0 or self.group >= self.shape[1]

    def values(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) in float32."""
        codes, scales = self.rows(start, stop)
        self._check(scales)
        return codes.astype(np.float32) * scales[:, self.columns]

    def kept(self, scheme: Scheme, start: int, stop: int) -> tuple[Int8, UInt16]:
        """Codes and bf16 scales, as `scheme` stores them, of rows [start, stop). The codes are those of the file.

        Raises:
            Unsupported: a code that the scheme does not have, in a file that promised none.
        """
        assert self.holds(scheme)
        codes, scales = self.rows(start, stop)
        self._check(scales)
        low, high = scheme.code_range
        if codes.min() < low or codes.max() > high:
            raise Unsupported(
                f"{self.name} has codes from {codes.min()} to {codes.max()}, and {scheme.format} holds {low} to {high}",
                hint=f"--recipe {scheme} rounds its values again",
            )
        groups = np.arange(scheme.groups(self.shape[1])) * scheme.group // self.group
        return codes.astype(np.int8), round_bf16(scales[:, groups])

    def _check(self, scales: Float32) -> None:
        if not np.isfinite(scales).all():
            raise Damaged(f"{self.name} has scales that are not finite", hint="download the checkpoint again")

    @property
    def _group(self) -> int | None:
        """The largest group of a scheme that no group of the matrix ends within."""
        whole = max(GROUPS) if self.group >= self.shape[1] else None
        return max((group for group in GROUPS if self.group % group == 0), default=whole)

    @functools.cached_property
    def _is_in_order(self) -> bool:
        return bool((self.columns == np.arange(self.shape[1]) // self.group).all())


def round_bf16(values: Float32) -> UInt16:
    """The bits of the nearest bf16 of finite values, ties to even: at most 2^-8 of a normal value away."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _reaches(format: str, low: int, high: int) -> bool:
    scheme = Scheme(format, 32)
    return scheme.offset == 0 and scheme.code_range[0] <= low and high <= scheme.code_range[1]
