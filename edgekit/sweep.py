"""What is left of a checkpoint at several recipes: its coherence with each, in float32 arithmetic on this machine.

Only the weights are rounded here, so that what a recipe costs is told apart from what an engine costs. Text is cut into
windows as in eval.py.

Windows begin where the text is cut, not with the token that begins a text; prompts that are continued for rep4 begin
with it. They are continued by CONTINUATION_TOKENS or, where the window is shorter, by as many as it holds: shares of
repeated 4-grams compare only where that number is the same.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.checkpoint import Checkpoint
from edgekit.coherence import (
    CONTINUATION_TOKENS,
    CONTINUATIONS,
    Coherence,
    Tally,
    Tokens,
    continued,
    prompts,
    rep4,
    windows,
)
from edgekit.graph import Session, build_graph
from edgekit.methods import Inputs
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import Recipe

Progress = Callable[[int, int], None]  # recipes measured, recipes in all


@dataclass(frozen=True, slots=True)
class Survival:
    """A checkpoint quantized by `recipe`: bits a weight with their scales, and its agreement with the float one.

    `continued` are the tokens after each prompt that rep4 is of.
    """

    recipe: Recipe
    bits: float
    coherence: Coherence
    continued: int

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": str(self.recipe),
            "method": self.recipe.method,
            "bits_per_weight": self.bits,
            **self.coherence.as_json(),
            "continued_tokens": self.continued,
        }


def sweep(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    ids: Tokens,
    *,
    window: int,
    inputs: Mapping[str, Inputs] | None = None,
    threads: int = 2,
    on_progress: Progress = lambda done, total: None,
) -> list[Survival]:
    """The checkpoint with each of `recipes`, over the held-out text `ids` in windows of `window` tokens.

    `inputs` are what its matrices multiply, for methods that want to know (calibrate.py).

    Raises:
        UsageError, Unsupported: a recipe that does not fit the checkpoint.
    """
    graph = build_graph(checkpoint, context=window)
    lead = [] if checkpoint.bos_id is None else [checkpoint.bos_id]
    begun = [[*lead, *prompt.tolist()] for prompt in prompts(ids, CONTINUATIONS, window - len(lead))]
    count = min(CONTINUATION_TOKENS, window - max(map(len, begun), default=0))
    found = []
    with Session(graph, threads=threads) as reference:
        reference_rep4 = rep4([list(continued(reference, np.array(prompt), count)) for prompt in begun])
        for done, recipe in enumerate(recipes):
            on_progress(done, len(recipes))
            quant = quantize(graph, checkpoint, recipe, inputs=inputs)
            tally = Tally()
            with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
                portable_onnx(quant, Path(folder) / "model.onnx")
                with Session(Path(folder) / "model.onnx", threads=threads, prepack=True, exact=True) as session:
                    for part in windows(ids, window):
                        expected, logits = (model.logits(part.tolist()) for model in (reference, session))
                        tally.add(expected[:-1], logits[:-1], part[1:])
                    repeated = rep4([list(continued(session, np.array(prompt), count)) for prompt in begun])
            coherence = tally.coherence(rep4=repeated, reference_rep4=reference_rep4)
            found.append(Survival(recipe, _bits(quant), coherence, count if begun else 0))
    on_progress(len(recipes), len(recipes))
    return found


def _bits(quant: QuantGraph) -> float:
    """Bits a weight of the matrices takes in memory, scales of 16 bits with it."""
    weights = bits = 0
    for tensor in quant.tensors.values():
        n, k = tensor.shape
        scales = 0 if tensor.scheme.is_float else 16 * n * tensor.scheme.groups(k)
        weights, bits = weights + n * k, bits + n * k * tensor.scheme.bits + scales
    return bits / weights
