"""What is measured of a model after training: condensation by layer, what is left at few bits, what dispersion cost."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from edgekit.calibrate import inputs_bytes, measure_inputs, measuring_bytes
from edgekit.checkpoint import Checkpoint
from edgekit.coherence import Tokens, windows
from edgekit.condensation import measure_condensation
from edgekit.disk import UNFINISHED, make_hidden, told_as
from edgekit.graph import build_graph
from edgekit.methods import Inputs, find_method
from edgekit.scheme import parse_recipe
from edgekit.sweep import sweep
from edgekit.train.start import Start
from edgekit.train.text import Sequences
from edgekit.train.trainer import DispersionTrainer
from edgekit.units import Bytes

Progress = Callable[[str, int, int], None]  # stage, parts done, parts in all (0: not known)
Tell = Callable[[str], None]  # a sentence for the person

_CONDENSATION_TOKENS: Final = 4096
_TIMED_STEPS: Final = 5


def survey(checkpoint: Checkpoint, start: Start, progress: Progress, tell: Tell) -> dict[str, Any]:
    """`condensation`, the figures of the embedding's output and every block's, and `sweep`, a row for each recipe.

    Both over held-out text, its part that is not in the curve if that has [sweep] tokens; methods that ask for inputs
    are calibrated on sequences from all over the training text, and what they measure lies in the checkpoint's folder
    meanwhile.
    """
    wanted, window = start.recipe.sweep, start.recipe.text.context
    ids = _held_out(start, wanted.tokens)
    progress("condensation", 0, 0)
    figures = measure_condensation(
        checkpoint,
        windows(ids[:_CONDENSATION_TOKENS], window),
        threads=torch.get_num_threads(),
        progress=lambda done, total: progress("condensation", done, total),
    )
    recipes = [replace(parse_recipe(recipe), method=method) for method in wanted.methods for recipe in wanted.recipes]
    with _inputs(checkpoint, start, progress, tell) as inputs:
        found = sweep(
            checkpoint,
            recipes,
            ids,
            window=window,
            inputs=inputs,
            threads=torch.get_num_threads(),
            on_progress=lambda done, total: progress("sweep", done, total),
        )
    names = ["embedding", *map(str, range(checkpoint.decoder.layers))]
    return {
        "condensation": [{"layer": name, **asdict(each)} for name, each in zip(names, figures, strict=True)],
        "sweep_tokens": len(ids),
        "sweep": [survival.as_json() for survival in found],
    }


@contextlib.contextmanager
def _inputs(
    checkpoint: Checkpoint, start: Start, progress: Progress, tell: Tell
) -> Iterator[Mapping[str, Inputs] | None]:
    """What the matrices multiply, in files while this lasts; None if no method asks."""
    if not any(find_method(method).needs_inputs for method in start.recipe.sweep.methods):
        yield None
        return
    graph = build_graph(checkpoint, context=start.recipe.text.context)
    memory, disk = Bytes(measuring_bytes(graph)), Bytes(inputs_bytes(graph))
    tell(f"calibrating takes about {memory} of memory beside the model's, and {disk} of disk")
    progress("calibrate", 0, 0)
    folder = make_hidden(UNFINISHED, checkpoint.path)
    try:
        with told_as(folder, checkpoint.path):
            yield measure_inputs(
                checkpoint,
                _calibration(start),
                directory=folder,
                threads=torch.get_num_threads(),
                progress=lambda done, total: progress("calibrate", done, total),
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _held_out(start: Start, tokens: int) -> Tokens:
    rest = start.held_out[len(start.evaluated) * start.recipe.text.context :]
    return np.array(rest[:tokens] if len(rest) >= tokens else start.held_out[-tokens:], np.uint32)


def _calibration(start: Start) -> list[Tokens]:
    count = max(1, min(len(start.trained_on), start.recipe.sweep.calibration // start.recipe.text.context))
    chosen = np.linspace(0, len(start.trained_on) - 1, count).astype(int)
    return [start.trained_on[index]["input_ids"].numpy().astype(np.uint32) for index in chosen]


def dispersion_cost(trainer: DispersionTrainer, model: nn.Module, text: Sequences) -> float:
    """Seconds of forward and backward with the dispersion term over those without, the fastest of five, in alternation.

    With rounding where it is on. The optimizer takes the same in both and is left out, so whole steps differ by less.
    Weights stay as they are.
    """
    examples = [text[index] for index in range(trainer.args.per_device_train_batch_size)]
    term, fastest = trainer.dispersion, {True: float("inf"), False: float("inf")}
    trainer.current_gradient_accumulation_steps = 1
    for step in range(2 * _TIMED_STEPS):
        with_term = step % 2 == 0
        trainer.dispersion = term if with_term else None
        began = time.perf_counter()
        trainer.training_step(model, trainer.data_collator(examples))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        fastest[with_term] = min(fastest[with_term], time.perf_counter() - began)
        model.zero_grad()
    trainer.dispersion = term
    return fastest[True] / fastest[False]
