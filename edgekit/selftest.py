"""Load what was written, run a prefill and a decode, and compare the logits with the quantized graph's.

The reference has the same quantized weights, float32 activations, and for the native engine keys and values rounded to
f16 as its cache does. The engines round activations to int8 where the weights are codes, so their logits differ by a
bounded share:

- A group of g activations is rounded in steps of max / 127. The error of a value is uniform within a step, so its root
  mean square is 1/sqrt(12) of it, and the group's norm is at least max: relative error <= sqrt(g) / (127 sqrt(12)).
  A linear layer passes the share on, because its weights know nothing of the rounding.
- Errors of different layers are independent and add as squares: 4 roundings a layer and one before the head.
- Float32 sums in another order differ by 2^-24 of their terms, which is nothing; but now and then one crosses the
  border between two f16 numbers, 2^-11 apart. Half of that is allowed for each key and value that a layer rounds.
- A group whose norm is near its max is rare: for normal activations the norm is sqrt(g) / 3 of it. That slack is left
  for attention and the gate, which bend what they are given. Where a model bends more, ONNX Runtime shows it: the
  same graph is run with its own rounding to int8, and three times what that moves the logits is allowed.
"""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.bundle import find_runner
from edgekit.cache import Cache
from edgekit.coherence import Logits, Tokens
from edgekit.device import open_device
from edgekit.errors import GateFailed, TargetMissing
from edgekit.graph import Session
from edgekit.measure import Measurement, Runner
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph
from edgekit.scheme import Scheme
from edgekit.target import HOST, Target, load_target

Progress = Callable[[str, int, int], None]

TRIED_TOKENS = 16
_MORE_THAN_ROUNDED = 3.0
_STAGE = "self-test: {}"
_REPORT = "nothing was written; please report it, with the model"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the program's logits are from the graph's, as a share of their spread; `ran_on` says what ran it."""

    tokens: int
    relative_error: float
    tolerance: float
    ran_on: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A model to be tried on `device` by `program`; without one, by ONNX Runtime. `ours` is this machine's program."""

    model: Path
    device: str
    program: Path | None
    ours: Path | None


def native_trial(target: Target, model: Path, runner: Path) -> Trial:
    """The shipped runner, run here or emulated if possible; else this machine's, which computes the same bits."""
    host = load_target(HOST)
    ours = find_runner(host.triple)
    if target.triple == host.triple:
        return Trial(model, "local", runner, ours)
    if target.qemu_cpu is not None:
        try:
            with open_device(f"qemu:{target.name}") as device:
                return Trial(model, device.name, runner, ours)
        except TargetMissing:
            pass
    return Trial(model, "local", ours, ours)


def onnx_trial(model: Path) -> Trial:
    """ONNX Runtime on this machine."""
    return Trial(model, "local", None, None)


def try_model(
    trial: Trial, quant: QuantGraph, ids: Tokens, *, cache: Cache, progress: Progress
) -> tuple[Agreement, Measurement]:
    """The agreement on the beginning of `ids`, and the coherence over the model's probe.

    The probe is always run by this machine's program, because it is long.

    Raises:
        GateFailed: the logits are further apart than rounding explains, or depend on how the tokens were divided.
    """
    tokens = ids[: min(TRIED_TOKENS, quant.graph.context)]
    reference = quant if trial.program is None else with_cache_in_f16(quant)
    progress(_STAGE.format("run the quantized graph"), 0, 0)
    expected = _graph_logits(reference, tokens, cache, exact=True)
    progress(_STAGE.format(f"run the model on {trial.device}"), 0, 0)
    vocab, layers, schemes = quant.graph.decoder.vocab, quant.graph.decoder.layers, list(quant.schemes.values())
    with open_device(trial.device) as device:
        runner = Runner(device, model=trial.model, program=trial.program)
        prefilled = runner.logits(tokens, vocab=vocab)
        decoded = runner.logits(tokens, vocab=vocab, chunk=1)
    if trial.program is not None and not np.array_equal(prefilled, decoded):
        raise GateFailed("the self-test failed: prefill and decode give different logits", hint=_REPORT)
    error, allowed = max(relative_error(expected, found) for found in (prefilled, decoded)), tolerance(schemes, layers)
    if error > allowed and not all(scheme.is_float for scheme in schemes):
        rounded = _graph_logits(reference, tokens, cache, exact=False)
        allowed = max(allowed, _MORE_THAN_ROUNDED * relative_error(expected, rounded))
    if not error <= allowed:
        raise GateFailed(
            f"the self-test failed: the logits on {trial.device} are {error:.2%} from the quantized graph's,"
            f" rounding explains {allowed:.2%}",
            hint=_REPORT,
        )
    agreement = Agreement(len(tokens), error, allowed, trial.device)
    progress("coherence: run the probe", 0, 0)
    with open_device("local") as device:
        return agreement, Runner(device, model=trial.model, program=trial.ours).probe()


def relative_error(expected: Logits, found: Logits) -> float:
    """Norm of the difference over the norm of `expected`, the mean of each row taken off: softmax does not see it."""
    wanted, got = (
        logits.astype(np.float64) - logits.mean(-1, keepdims=True, dtype=np.float64) for logits in (expected, found)
    )
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(got - wanted)) / norm if norm else math.inf


def tolerance(schemes: Iterable[Scheme], layers: int) -> float:
    """The share that the roundings named above explain."""
    groups = [scheme.group for scheme in schemes if not scheme.is_float]
    activation = math.sqrt(max(groups)) / (127 * math.sqrt(12)) if groups else 2.0**-20
    cache = 2.0**-12
    return math.sqrt((4 * layers + 1) * activation**2 + 2 * layers * cache**2)


def with_cache_in_f16(quant: QuantGraph) -> QuantGraph:
    """The same graph, but keys and values pass through f16 on their way into the cache."""
    model = quant.graph.model.clone()
    for node in [node for node in model.graph if node.op_type == "TensorScatter"]:
        narrow = ir.node("Cast", [node.inputs[1]], {"to": ir.DataType.FLOAT16}, name=f"{node.name}.f16")
        wide = ir.node("Cast", narrow.outputs, {"to": ir.DataType.FLOAT}, name=f"{node.name}.f32")
        for cast in (narrow, wide):
            cast.outputs[0].name = cast.name
        model.graph.insert_before(node, [narrow, wide])
        node.replace_input_with(1, wide.outputs[0])
    return replace(quant, graph=replace(quant.graph, model=model))


def _graph_logits(quant: QuantGraph, tokens: Tokens, cache: Cache, *, exact: bool) -> Logits:
    """The quantized graph's logits on ONNX Runtime, with float32 activations if `exact`, else rounded to int8."""
    with cache.scratch() as folder:
        portable_onnx(quant, folder / "model.onnx")
        # Unpacked, ONNX Runtime widens most matrices before it runs: 4 bytes for each weight of the model.
        packs = any(not scheme.is_float for scheme in quant.schemes.values())
        threads = len(os.sched_getaffinity(0))
        with Session(folder / "model.onnx", threads=threads, prepack=packs, exact=exact) as session:
            return session.prefill(tokens.tolist())
