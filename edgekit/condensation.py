"""How far the token vectors of each layer have collapsed into a narrow cone, and how heavy the weights' tails are.

Condensation: Liu et al., "Dispersion loss counteracts embedding condensation and improves generalization in small
language models", ICML 2026, arXiv 2602.00217. States are [n, d]: n token vectors of one sequence, d features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.blocks import embedded, open_block, weights_of
from edgekit.checkpoint import Checkpoint
from edgekit.coherence import Tokens
from edgekit.errors import Damaged
from edgekit.graph import build_graph

Floating = npt.NDArray[np.floating[Any]]
Progress = Callable[[int, int], None]  # done, in all


@dataclass(frozen=True, slots=True)
class Condensation:
    """Figures of the token vectors of one layer, without unit. Vectors of length 0 have a cosine of 0 with any other.

    `cosine` and `squared_cosine`: means of cos and cos^2 over pairs of different tokens; 1 and 1 where all point the
    same way, 0 and 0 where all are orthogonal.
    `effective_rank`: exp of the entropy of sigma / sum sigma over the singular values, not centred; from 1 up to
    min(n, d). Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    `mean_share`: |mean h|^2 / mean |h|^2, from 0 to 1. That part of what a rounded matrix gets wrong is the same for
    every token, and bias correction removes it.
    `feature_kurtosis`: mean_j (mean_i x_ij^2)^2 / (mean_ij x_ij^2)^2, from 1, all features alike, to d, a single one
    active. He et al., "Understanding and minimising outlier features in neural network training", arXiv 2405.19279.
    For rows of equal length d * (mean of cos^2 over all pairs, i = j too) bounds it from above.
    """

    cosine: float
    squared_cosine: float
    effective_rank: float
    mean_share: float
    feature_kurtosis: float


def condensation(states: Floating) -> Condensation:
    """The figures of states [n, d], n at least 2, computed in float64; those that would be 0 / 0 are 0.

    The mean cosine takes O(n d): (|sum_i u_i|^2 - sum_i |u_i|^2) / (n^2 - n), where u_i = z_i / |z_i|.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if states.ndim != 2 or len(states) < 2 or not np.isfinite(states).all():
        raise ValueError(f"states of shape {states.shape}: [n, d] with n at least 2 and finite values are needed")
    z = states.astype(np.float64)
    pairs = len(z) * (len(z) - 1)
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    unit = np.divide(z, lengths, out=np.zeros_like(z), where=lengths > 0)
    squares = np.square(unit).sum(1)
    powers = np.square(z).mean(0)
    return Condensation(
        cosine=float((np.square(unit.sum(0)).sum() - squares.sum()) / pairs),
        squared_cosine=float((np.square(unit @ unit.T).sum() - np.square(squares).sum()) / pairs),
        effective_rank=_effective_rank(z),
        mean_share=_ratio(np.square(z.mean(0)).sum(), powers.sum()),
        feature_kurtosis=_ratio(np.square(powers).mean(), np.square(powers.mean())),
    )


def condensation_by_layer(hidden_states: Iterable[Floating]) -> list[Condensation]:
    """The figures of every layer's states, [n, d] or [batch, n, d], averaged over the sequences of the batch.

    Raises:
        ValueError: as `condensation`.
    """
    return [
        mean_condensation([condensation(states) for states in layer.reshape(-1, *layer.shape[-2:])])
        for layer in hidden_states
    ]


def mean_condensation(figures: Sequence[Condensation]) -> Condensation:
    """The mean of each figure over sequences, at least one."""
    return Condensation(*np.mean([astuple(each) for each in figures], axis=0).tolist())


def measure_condensation(
    checkpoint: Checkpoint,
    sequences: Sequence[Tokens],
    *,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Condensation]:
    """The figures of the embedding's output and then of every block's, averaged over `sequences`.

    They are those of the residual stream: also the last block's output is taken before the final norm. Sequences have
    at least two tokens. The weights of one block are in memory at a time, and each is read once.

    Raises:
        UsageError: a sequence longer than the model's context.
        Damaged: values that are not finite.
    """
    graph = build_graph(checkpoint, context=max(map(len, sequences)))
    block, layers = open_block(graph, threads=threads), checkpoint.decoder.layers
    states = [embedded(checkpoint, ids) for ids in sequences]
    figures = []
    for layer in range(layers + 1):
        if layer > 0:
            weights = weights_of(checkpoint, layer - 1)
            states = [block.run(each, weights) for each in states]
        figures.append(mean_condensation([condensation(each) for each in states]))
        progress(layer, layers)
    return figures


def kurtosis(blocks: Iterable[Floating]) -> float:
    """mean (w - mean w)^4 / variance^2 of all values in `blocks`: 1.8 if uniform, 3 if Gaussian; 0 if all are equal.

    One pass, float64: moments about the first block's mean, which is near the mean, so that little cancels.
    """
    count, sums, about = 0, np.zeros(4), None
    for block in blocks:
        values = block.astype(np.float64).reshape(-1)
        if about is None:
            about = values.mean()
        values -= about
        count += len(values)
        squares = np.square(values)
        sums += values.sum(), squares.sum(), (squares * values).sum(), np.square(squares).sum()
    m1, m2, m3, m4 = sums / count
    variance = m2 - m1**2
    return _ratio(m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4, variance**2)


def weight_kurtosis(checkpoint: Checkpoint, *, progress: Progress = lambda done, total: None) -> Mapping[str, float]:
    """The kurtosis of every weight matrix, by its name in the checkpoint; 32 MiB are in memory at a time.

    Raises:
        Damaged: weights that are not finite.
    """
    matrices = [name for name, shape in checkpoint.decoder.tensor_shapes().items() if len(shape) == 2]
    found = {}
    for done, name in enumerate(matrices):
        progress(done, len(matrices))
        found[name] = kurtosis(_checked(rows, name) for _, rows in checkpoint.read_blocks(name))
    progress(len(matrices), len(matrices))
    return found


def _checked(weights: Floating, name: str) -> Floating:
    if not np.isfinite(weights).all():
        raise Damaged(f"{name} has weights that are not finite", hint="train or download the checkpoint again")
    return weights


def _effective_rank(states: Floating) -> float:
    # By the eigenvalues of the smaller Gram matrix: where threads wait for each other, a tenth of the time of an SVD.
    wide = states if len(states) <= states.shape[1] else states.T
    squares = np.linalg.eigvalsh(wide @ wide.T)
    # What is below the rounding of float64 is none: singular values below 3e-7 of the largest, at 512 tokens.
    kept = squares[squares > squares[-1] * max(states.shape) * np.finfo(np.float64).eps]
    sigma = np.sqrt(kept)
    shares = sigma / sigma.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
