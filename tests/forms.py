"""Every form in which edgekit gives a model to a runtime: compiled by the whole flow, and run in the same process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edgekit import pipeline
from edgekit.bundle import Bundle
from edgekit.cache import user_cache
from edgekit.checkpoint import open_checkpoint
from edgekit.coherence import Logits, Tokens
from edgekit.device import open_device
from edgekit.engines import find_engine
from edgekit.engines.written import read_written
from edgekit.graph import Session, build_graph
from edgekit.measure import Measurement, Runner
from edgekit.pipeline import Order, build
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph, quantize
from edgekit.rounded import rounded_as_native
from edgekit.scheme import parse_recipe
from edgekit.selftest import Agreement, Trial, tolerance

# As on the command line, with what an order says for it.
FORMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "native": {"engine": "native"},
    "onnxruntime": {"engine": "onnxruntime"},
    "onnxruntime --portable": {"engine": "onnxruntime", "portable": True},
    "executorch": {"engine": "executorch"},
    "executorch --portable": {"engine": "executorch", "portable": True},
    "litert": {"engine": "litert"},
    "litert --litert-runtime 2.14": {"engine": "litert", "litert_runtime": "2.14"},
}
_PROBE: Final = "The ferry left the harbour a little before six, while the lamps along the quay were still burning."


@dataclass(frozen=True)
class Made:
    """A bundle, and the logits of a text that its engine gave on the device `ran_on`.

    `expected` are those of the graph of its own codes, and `allowed` is the share that rounding explains.
    `keeps_values`: matrices of the recipe's first scheme, which the head may not have, have the values they had by it.
    `is_slow`: matrices in codes are multiplied outside the engine's fast kernels.
    """

    bundle: Bundle
    logits: Logits
    expected: Logits
    allowed: float
    ran_on: str
    weights_bytes: int
    keeps_values: bool
    is_slow: bool


def make(form: str, model: Path, recipe: str, output: Path, ids: Tokens, prompt: int, target: str) -> Made:
    """The model in that form. Of `ids` the engine reads `prompt` at once and the others one by one.

    Raises:
        EdgekitError: it is refused.
    """
    tried: list[tuple[Trial, QuantGraph, Logits]] = []

    def try_here(trial: Trial, quant: QuantGraph, *_: object, **__: object) -> tuple[Agreement, Measurement]:
        """In place of the self-test, which runs an engine in a process of its own."""
        tried.append((trial, quant, _run(trial, quant, ids, prompt)))
        return Agreement(len(ids), 0.0, 0.0, trial.device), Measurement({}, {}, {}, {}, {}, ())

    order = Order(model, target, parse_recipe(recipe), output, probe_text=_PROBE, **FORMS[form])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "try_model", try_here)
        outcome = build(order, user_cache(), lambda *stage: None, lambda found: None)
    (trial, quant, logits), bundle = tried[0], outcome.bundle
    is_native, is_ours = bundle.engine == "native", bundle.kernels == "edgekit"
    weights = outcome.predicted["weights_bytes"] if is_native else read_written(bundle.model).weights_bytes
    assert weights is not None
    return Made(
        bundle,
        logits,
        _graph_logits(rounded_as_native(quant) if is_ours else quant, ids, output.with_suffix(".onnx")),
        tolerance(quant.schemes.values(), quant.graph.decoder.layers, compares_rounded=is_ours),
        trial.device,
        int(weights),
        _has_values(quant, model, recipe),
        any(row.matrices for row in outcome.outside),
    )


def _run(trial: Trial, quant: QuantGraph, ids: Tokens, prompt: int) -> Logits:
    if trial.program is not None:
        with open_device(trial.device) as device:
            runner = Runner(device, model=trial.model, program=trial.program)
            return runner.logits(ids, vocab=quant.graph.decoder.vocab, chunk=1)
    written = read_written(trial.model)
    session = find_engine(written.engine).open_model(written, threads=2)
    try:
        rows = [session.prefill(ids[:prompt].tolist())]
        rows += [session.decode(int(token))[None] for token in ids[prompt:]]
    finally:
        session.close()
    return np.concatenate(rows)


def _graph_logits(quant: QuantGraph, ids: Tokens, file: Path) -> Logits:
    """What ONNX Runtime computes from the quantized graph in float32."""
    portable_onnx(quant, file)
    with Session(file, threads=1, prepack=True, exact=True) as session:
        return session.prefill(ids.tolist())


def _has_values(quant: QuantGraph, model: Path, recipe: str) -> bool:
    checkpoint, asked = open_checkpoint(model), parse_recipe(recipe)
    had = quantize(build_graph(checkpoint, context=quant.graph.context), checkpoint, asked).tensors
    names = [name for name, tensor in had.items() if tensor.scheme == asked.default]
    return all(np.array_equal(had[name].values(), quant.tensors[name].values()) for name in names)
