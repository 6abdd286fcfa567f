"""What rounding one part of a model alone does to its next-token distributions: measured, part by part.

The parts are the embedding, every block and the head; a tied head is the embedding, so both are rounded as one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from edgekit.archs import Decoder
from edgekit.blocks import EMBEDDING, Float32, Part, as_right_operand, embedded, open_block, open_head, weights_of
from edgekit.checkpoint import Checkpoint
from edgekit.coherence import Tally, Tokens
from edgekit.errors import Damaged
from edgekit.graph import build_graph
from edgekit.methods import rtn
from edgekit.quantize import QuantTensor
from edgekit.scheme import Scheme

Progress = Callable[[int, int], None]  # multiply-adds a token done, in all
States = list[Float32]  # of each sequence, [s, hidden]

# Nats a token: a fifth of the KLD at which a model is no longer coherent (coherence.py).
HURTS: Final = 0.1
_HEAD: Final = "lm_head.weight"


def measure_sensitivity(
    checkpoint: Checkpoint,
    sequences: Sequence[Tokens],
    schemes: Sequence[Scheme],
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[Scheme, float]]:
    """The divergence, in nats a token, of the model with one part in `scheme` from the float one, part by part.

    Parts are "embedding", "0", "1", ... for the blocks, and "head"; a tied head is in "embedding". Weights are rounded
    to nearest (methods/rtn.py), activations not at all. It is the full divergence, over every token of a sequence but
    its first, each predicted from those before it.

    All rounded variants go through the blocks side by side, so a block's weights are read once. In memory are the
    weights of one block, or of the head twice, and for each variant 4 * hidden bytes a token.

    Raises:
        UsageError: a sequence longer than the model's context.
        Damaged: values that are not finite.
    """
    decoder = checkpoint.decoder
    graph = build_graph(checkpoint, context=max(map(len, sequences)))
    walk = _Walk(decoder, schemes, progress)
    exact = [embedded(checkpoint, ids) for ids in sequences]
    rounded = {("embedding", scheme): [_rounded(EMBEDDING, states, scheme) for states in exact] for scheme in schemes}
    block = open_block(graph)
    for layer in range(decoder.layers):
        weights = weights_of(checkpoint, layer)
        for key, states in rounded.items():
            rounded[key] = walk.through(block, states, weights)
        for scheme in schemes:
            changed = {
                name: as_right_operand(_rounded(name, value.T, scheme)) if value.ndim == 2 else value
                for name, value in weights.items()
            }
            rounded[str(layer), scheme] = walk.through(block, exact, changed)
        exact = walk.through(block, exact, weights)
    return _divergences(checkpoint, open_head(graph), sequences, exact, rounded, schemes, walk)


def sensitivity_work(decoder: Decoder, schemes: Sequence[Scheme]) -> int:
    """Multiply-adds a token that `measure_sensitivity` takes; those of attention itself are not counted."""
    return _Walk(decoder, schemes, lambda done, total: None).total


def hurting(divergences: Mapping[str, Mapping[Scheme, float]], scheme: Scheme) -> list[tuple[str, float]]:
    """The parts whose divergence in `scheme` is above HURTS, with it, the worst first."""
    found = [(part, by_scheme[scheme]) for part, by_scheme in divergences.items() if by_scheme[scheme] > HURTS]
    return sorted(found, key=lambda each: -each[1])


class _Walk:
    """Runs parts and counts the multiply-adds a token that this took."""

    def __init__(self, decoder: Decoder, schemes: Sequence[Scheme], progress: Progress) -> None:
        layers, variants = decoder.layers, len(schemes)
        shapes = [shape for shape in decoder.tensor_shapes().items() if len(shape[1]) == 2]
        self.block_work = sum(math.prod(shape) for name, shape in shapes if name.startswith("model.layers.0."))
        self.head_work = decoder.hidden * decoder.vocab
        # The embedding's variants pass all blocks, those of the block i all from i on.
        blocks = layers + variants * (layers + layers * (layers + 1) // 2)
        heads = 1 + variants * (layers + 1 + (not decoder.tied))
        self.total = blocks * self.block_work + heads * self.head_work
        self._done, self._progress = 0, progress

    def through(self, block: Part, states: States, weights: Mapping[str, Float32]) -> States:
        """The block's output for the states of every sequence."""
        result = [block.run(each, weights) for each in states]
        self.count(self.block_work)
        return result

    def count(self, work: int) -> None:
        self._done += work
        self._progress(self._done, self.total)


def _divergences(
    checkpoint: Checkpoint,
    head: Part,
    sequences: Sequence[Tokens],
    exact: States,
    rounded: Mapping[tuple[str, Scheme], States],
    schemes: Sequence[Scheme],
    walk: _Walk,
) -> dict[str, dict[Scheme, float]]:
    """Every variant's divergence, from the last block's outputs."""
    name = EMBEDDING if checkpoint.decoder.tied else _HEAD
    norm = {"model.norm.weight": checkpoint.read("model.norm.weight")}
    weights = norm | {name: _head_matrix(checkpoint, name)}
    reference = [head.run(states, weights) for states in exact]
    walk.count(walk.head_work)
    found: dict[str, dict[Scheme, float]] = {part: {} for part, _ in rounded}
    if not checkpoint.decoder.tied:
        found["head"] = {}

    def add(part: str, scheme: Scheme, states: States, weights: Mapping[str, Float32]) -> None:
        tally = Tally()
        for ids, expected, each in zip(sequences, reference, states, strict=True):
            tally.add(expected[:-1], head.run(each, weights)[:-1], ids[1:])
        found[part][scheme] = tally.coherence(rep4=0, reference_rep4=0).kld_mean
        walk.count(walk.head_work)

    for (part, scheme), states in rounded.items():
        if part != "embedding" or not checkpoint.decoder.tied:
            add(part, scheme, states, weights)
    del weights
    for scheme in schemes:
        changed = norm | {name: _head_matrix(checkpoint, name, scheme)}
        if checkpoint.decoder.tied:
            add("embedding", scheme, rounded["embedding", scheme], changed)
        else:
            add("head", scheme, exact, changed)
    return found


def _head_matrix(checkpoint: Checkpoint, name: str, scheme: Scheme | None = None) -> Float32:
    """The head's matrix as the graph takes it, rounded if there is a scheme; a block of its rows at a time."""
    n, k = checkpoint.tensors[name].shape
    matrix = np.empty((n, k) if name == EMBEDDING else (k, n), np.float32)
    rows = matrix if name == EMBEDDING else matrix.T
    for start, values in checkpoint.read_blocks(name):
        rows[start : start + len(values)] = values if scheme is None else _rounded(name, values, scheme)
    return matrix


def _rounded(name: str, weights: Float32, scheme: Scheme) -> Float32:
    """The values of a matrix (n, k), or of some of its rows, once they are quantized."""
    weights = np.ascontiguousarray(weights)
    if not np.isfinite(weights).all():
        raise Damaged(f"{name} has weights that are not finite", hint="train or download the checkpoint again")
    codes, scales = rtn.quantize_matrix(weights, scheme)
    return QuantTensor(name, scheme, (weights.shape[0], weights.shape[1]), codes, scales).values()
