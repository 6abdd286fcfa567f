"""Predict how long an operator takes on a target.

Roofline: an operator lasts as long as the slower of moving its bytes and doing its arithmetic. Arithmetic is counted
from the kernel's inner loop (products, unpacking, the end of a group) and the core's issue rates; moving, from the rate
of the target's DRAM, or of its shared cache where the model fits there. Sampling and page faults are not counted.
Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from edgekit.cores import Core, find_isa, macs_per_cycle
from edgekit.kernels import TILE, Kernel, code_bytes, read_ceiling, scale_bytes
from edgekit.scheme import Scheme
from edgekit.target import Cluster, Rate, Target
from edgekit.units import Bytes, Seconds

# Silicon against a count that takes every operand to be in the first cache and every pipe to be full. Measured:
# T-MAC 2-bit on Cortex-A76 1.04 (T-MAC docs/profiling_data.md), llama.cpp q4_0 on Cortex-A76 1.95, q8_0 on
# Cortex-A72 2.0 to 2.4 (llama.cpp pull request 8151). The loops here are of the first kind; the upper middle is taken.
# llvm-mca 22 on the inner loops of these kernels against the count below, cycles of 32 weights: Cortex-A76 (as
# neoverse-n1, dispatch 4) q4 2.3 against 2.0, q2 2.1 against 2.0, q8 1.8 against 1.0, prefill 1.0 to 1.25 against 1.5;
# Cortex-A72 4.0 to 4.6 against 4.0 to 5.0.
SLACK = 2.0

# Vector operations of 128 bits that turn 32 packed weights into operands of a product: masks of the layout in
# edgekit/gemm.h. q4: two masks; q2, t2: four planes of 16 weights, a mask each; q3: eleven a 128 weights.
_UNPACK_OPS = {"q8": 0.0, "q4": 2.0, "q3": 2.75, "q2": 2.0, "t2": 2.0}
# At the end of a group, for each vector of sums: convert to float, multiply the scales, multiply and add.
_GROUP_OPS = 3


# How keys and values are kept in the cache: bytes of an element, and of the scale that each key and each value has
# (kernels/program/kv_cache.h).
KV_FORMATS: Final = {"f16": (2, 0), "q8": (1, 4)}

# What a step takes besides products and attention: the barrier, the norm, quantizing activations. Measured on two Zen 5
# cores with a model of 26 steps that fits the cache: 50 us a token, 32 us of them counted below, so 0.7 us a step.
STEP_CYCLES = 2000


@dataclass(frozen=True, slots=True)
class GemmShape:
    """C[m, n] = A[m, k] x B[n, k] transposed."""

    m: int
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What an operator takes. `moving` is None where the target gives no DRAM rate: then no time is predicted."""

    moved: Bytes
    ops: int
    computing: Seconds
    moving: Seconds | None

    @property
    def seconds(self) -> Seconds | None:
        return None if self.moving is None else Seconds(max(self.moving, self.computing))

    @property
    def bound(self) -> str:
        """What takes the longer: "memory" or "arithmetic"."""
        return "memory" if self.moving is not None and self.moving > self.computing else "arithmetic"


@dataclass(frozen=True, slots=True)
class Machine:
    """A target with so many threads at work. `resident`: the weights stay in the last cache, not in DRAM."""

    target: Target
    threads: int
    resident: bool = False

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """The cores that work, the fastest clock first."""
        left, working = self.threads, []
        for cluster in sorted(self.target.workers, key=lambda cluster: -cluster.clock_hz):
            count = min(left, cluster.count)
            if count:
                working.append(replace(cluster, count=count))
            left -= count
        return tuple(working)

    def moving(self, moved: int) -> Seconds | None:
        """Time to read `moved` bytes; None where the target gives no DRAM rate, also if the weights are resident.

        Resident weights take none where the rate of the cache is not known.
        """
        rate = self.target.dram_rate(self.threads)
        if rate is None:
            return None
        if self.resident:
            cache_rate = self.target.shared_cache_rate(self.threads)
            return Seconds(0 if cache_rate is None else moved / cache_rate.bytes_per_second)
        return Seconds(moved / rate.bytes_per_second)

    def computing(self, cycles: dict[str, float]) -> Seconds:
        """Time of work that would take `cycles[core]` on one core, shared out by speed."""
        speed = sum(cluster.count * cluster.clock_hz / cycles[cluster.core.name] for cluster in self.clusters)
        return Seconds(SLACK / speed)


def step_seconds(machine: Machine) -> Seconds:
    """What each operator takes besides its products and attention, on the slowest core at work."""
    return Seconds(STEP_CYCLES / min(cluster.clock_hz for cluster in machine.clusters))


def weight_bytes(scheme: Scheme, n: int, k: int) -> Bytes:
    """Bytes of packed codes and scales of an (n, k) matrix, padding of its tiles included."""
    return Bytes(code_bytes(scheme, n, k) + scale_bytes(scheme, n, k))


def gemm_cost(kernel: Kernel, scheme: Scheme, shape: GemmShape, machine: Machine) -> Cost:
    """Cost of one product, the weights read once and the activations kept in cache."""
    cycles = {cluster.core.name: gemm_cycles(kernel, scheme, shape, cluster.core) for cluster in machine.clusters}
    moved = weight_bytes(scheme, shape.n, shape.k)
    return Cost(moved, 2 * shape.m * shape.n * shape.k, machine.computing(cycles), machine.moving(moved))


def gemm_cycles(kernel: Kernel, scheme: Scheme, shape: GemmShape, core: Core) -> float:
    """Cycles of one core, counted as if nothing stood in the way.

    Weights are unpacked once for every `kernel.rows` rows of activations; rows of a tile that is not full cost as much.
    """
    passes = -(-shape.m // kernel.rows)
    vector_bits = find_isa(kernel.isa).vector_bits
    units = -(-shape.n // TILE) * TILE * -(-shape.k // 32)  # 32 weights each
    if scheme.is_float:
        convert = 32 * 16 / vector_bits / core.vector_ops_per_cycle if scheme.format == "f16" else 0.0
        lanes = core.f32_fma_per_cycle if vector_bits > 32 else 1
        return passes * units * (convert + kernel.rows * 32 / lanes)
    unpack = _UNPACK_OPS[scheme.format] * 128 / vector_bits / core.vector_ops_per_cycle
    group_end = _GROUP_OPS * 32 * 32 / (vector_bits * scheme.group) / core.vector_ops_per_cycle
    row = 32 / macs_per_cycle(core, kernel.isa) + group_end
    return passes * units * (unpack + kernel.rows * row)


def cached_bytes(kv: str, kv_heads: int, head_dim: int) -> Bytes:
    """Bytes of one position's keys and values in one layer; values are padded to whole lanes."""
    element, scale = KV_FORMATS[kv]
    return Bytes(kv_heads * ((head_dim + -(-head_dim // TILE) * TILE) * element + 2 * scale))


def attention_cost(
    *, rows: int, positions: int, heads: int, kv_heads: int, head_dim: int, kv: str, machine: Machine
) -> Cost:
    """Cost of attention of `rows` tokens over `positions` cached ones, keys and values read once.

    Two products of a head's vector with each position, in float32.
    """
    moved = Bytes(positions * cached_bytes(kv, kv_heads, head_dim))
    fmas = 2 * rows * positions * heads * head_dim
    cycles = {cluster.core.name: fmas / cluster.core.f32_fma_per_cycle for cluster in machine.clusters}
    return Cost(moved, 2 * fmas, machine.computing(cycles), machine.moving(moved))


def measured(target: Target) -> Target:
    """The host with the rates of its DRAM and shared cache measured now, for one thread and for all; once a process."""
    assert not target.dram
    # Far above any cache, and no burden where memory is small.
    large = Bytes(min(256 << 20, target.memory // 8))
    # Half of the cache is not pushed out by what else runs; a pass is short, so starting its threads needs many tries.
    small = Bytes(target.shared_cache_bytes // 2)
    counts = sorted({1, target.worker_count})
    return replace(
        target,
        dram=_measured_rates(counts, large, 3),
        shared_cache=_measured_rates(counts, small, 100) if small else (),
    )


def _measured_rates(counts: Sequence[int], size: Bytes, passes: int) -> tuple[Rate, ...]:
    """The rates of numbers of threads, without those where there was no memory to measure in."""
    rates = (_measured_rate(threads, size, passes) for threads in counts)
    return tuple(rate for rate in rates if rate.bytes_per_second > 0)


@cache
def _measured_rate(threads: int, size: Bytes, passes: int) -> Rate:
    rate = read_ceiling(threads, size=size, rounds=passes)
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    source = f"{size} read by edgekit on this machine now, {counted}, median of {passes} passes, best of four ways"
    return Rate(threads, rate, "measured here", source)


def tokens_per_second(tokens: int, seconds: Seconds | None) -> float | None:
    """Tokens a second, or None where no time is predicted."""
    return None if seconds is None or not math.isfinite(seconds) or seconds <= 0 else tokens / seconds
