"""Choose the kernel of a matrix product for a target: a pure function of catalogue, shape and machine.

Kernels made for one row decode, the others prefill, as the library itself chooses (edgekit/gemm.h). Among those the
fastest arithmetic wins, and the earlier row of the catalogue where two are equal; the DRAM rate plays no part, since
all kernels of one format read the same bytes. The losers are kept, each with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.cores import find_isa
from edgekit.cost import Cost, GemmShape, Machine, gemm_cost
from edgekit.errors import Unsupported
from edgekit.kernels import Kernel
from edgekit.scheme import Scheme
from edgekit.target import Target
from edgekit.units import Seconds


@dataclass(frozen=True, slots=True)
class Loser:
    """A kernel that was not chosen. `computing` is its arithmetic, None if the target cannot run it."""

    kernel: str
    computing: Seconds | None
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel for one product, what it is predicted to cost, and the others of its format and architecture."""

    kernel: Kernel
    cost: Cost
    losers: tuple[Loser, ...]


def choose(kernels: Sequence[Kernel], scheme: Scheme, shape: GemmShape, machine: Machine) -> Choice:
    """The kernel of `kernels` that multiplies `shape` with weights of `scheme` fastest on `machine`.

    Raises:
        Unsupported: none of them runs on the target.
    """
    target = machine.target
    candidates = [kernel for kernel in kernels if kernel.weights == scheme.format and _is_for(kernel, target)]
    able = [kernel for kernel in candidates if not kernel.features & ~target.feature_bits]
    if not able:
        raise Unsupported(f"no kernel multiplies {scheme} weights on {target.name}", hint="try another recipe")
    fitting = [kernel for kernel in able if (kernel.rows == 1) == (shape.m == 1)] or able
    costs = {kernel.name: gemm_cost(kernel, scheme, shape, machine) for kernel in able}
    best = min(fitting, key=lambda kernel: costs[kernel.name].computing)
    losers = []
    for kernel in candidates:
        if kernel.name not in costs:
            losers.append(Loser(kernel.name, None, _lacks(kernel, target)))
        elif kernel is not best:
            computing = costs[kernel.name].computing
            ratio = computing / costs[best.name].computing
            reason = f"{ratio:.2f} times the arithmetic" if ratio > 1 else "as fast, later in the catalogue"
            if kernel not in fitting:
                reason = "made for one row" if kernel.rows == 1 else f"made for {kernel.rows} rows"
            losers.append(Loser(kernel.name, computing, reason))
    return Choice(best, costs[best.name], tuple(losers))


def _is_for(kernel: Kernel, target: Target) -> bool:
    return find_isa(kernel.isa).architecture in (target.architecture, "any")


def _lacks(kernel: Kernel, target: Target) -> str:
    missing = sorted(find_isa(kernel.isa).features - target.features)
    return f"{target.name} has no {', '.join(missing)}"
