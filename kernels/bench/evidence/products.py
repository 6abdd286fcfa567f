"""Single products: which of our kernels is timed, and the rows that are made of its times and a peer's."""

from collections.abc import Callable

from edgekit.kernels import catalogue, cpu_features
from evidence.native import Programs, Timed
from evidence.progress import say
from evidence.samples import Comparison, alternate
from evidence.shapes import Product

# Copies of the weights, taken in turn, take at least this: more than the caches hold. As in gemm_bench.cc.
MEMORY_BYTES = 256 << 20
SECONDS = 0.2  # of a sample


def copies_of(product: Product, weight_bytes: int) -> int:
    """How many copies of the weights a peer multiplies with in turn: one for many rows, which arithmetic bounds."""
    return 1 if product.m > 1 else max(1, MEMORY_BYTES // weight_bytes)


def kernel_for(weights: str, rows: int) -> str:
    """The kernel that edgekit runs on this CPU: the first of the catalogue that is for so many rows."""
    able = (k for k in catalogue() if k.weights == weights and k.runs_here and not k.features & ~cpu_features())
    return next(kernel.name for kernel in able if (kernel.rows == 1) == (rows == 1))


def compare(
    part: str,
    programs: Programs,
    product: Product,
    *,
    weights: str,
    group: int,
    theirs_name: str,
    theirs: Callable[[], Timed],
    threads: int,
    rounds: int,
) -> Comparison:
    """Microseconds of our kernel and theirs. Ours: kernel alone, its activations quantized before."""
    kernel = kernel_for(weights, product.m)
    say(f"{product}: {kernel} g{group} beside {theirs_name}")
    pairs = list(
        alternate(
            lambda: programs.product(kernel, product, group=group, threads=threads, seconds=SECONDS),
            theirs,
            rounds,
            warm=False,  # every sample warms up by itself
        )
    )
    return Comparison(
        part=part,
        shape=str(product),
        test=f"{'decode' if product.m == 1 else 'prefill'}, {pairs[0][0].weight_bytes / 1e6:.3g} MB and "
        f"{pairs[0][1].weight_bytes / 1e6:.3g} MB",
        ours_name=f"{weights}g{group}",
        theirs_name=theirs_name,
        unit="us",
        ours=tuple(a.seconds * 1e6 for a, _ in pairs),
        theirs=tuple(b.seconds * 1e6 for _, b in pairs),
        our_rates=tuple(a.weight_bytes / a.seconds / 1e9 for a, _ in pairs if product.m == 1),
        their_rates=tuple(b.weight_bytes / b.seconds / 1e9 for _, b in pairs if product.m == 1),
        higher_is_better=False,
    )
