"""Load what was written, run a prefill and a decode, and compare the logits with the quantized graph's.

The reference is the quantized graph in standard ONNX on ONNX Runtime, with float32 arithmetic. For edgekit's kernels it
also rounds activations and cache as they do (rounded.py), with keys and values in f16 on both sides whatever the
cache of a native bundle is. So the logits are the same but for the order of float32 sums: some 1e-7 of their spread.
Now and then such a difference tips a value over to the next int8 code.

- A group of g activations is rounded in steps of max / 127. The error of a value is uniform within a step, so its root
  mean square is 1/sqrt(12) of it, and the group's norm is at least max: relative error <= sqrt(g) / (127 sqrt(12)).
  A linear layer passes the share on, because its weights know nothing of the rounding.
- edgekit's kernels may differ by one such rounding. A runtime's own, compared with float32 activations, by all of them:
  4 a layer and one before the head, which are independent and add as squares.
- Another engine runs edgekit's kernels with the cache it has. One in q8 rounds keys and values by heads, the reference
  does not: 2 independent roundings a layer, of groups as long as a head.
- Float weights leave the rounding of the cache to f16: 2^-12 for the keys and for the values of each layer.
- What tips over in one layer can tip more in the next, until the roundings have nothing to do with each other. Two
  such roundings differ by sqrt(2) of what one does to the logits, which is measured: 1.5 of it is allowed.
"""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.bundle import find_runner
from edgekit.cache import Cache
from edgekit.coherence import Logits, Tokens
from edgekit.device import open_device
from edgekit.engines.written import Written
from edgekit.errors import GateFailed, TargetMissing
from edgekit.graph import Session
from edgekit.measure import Measurement, Runner
from edgekit.plan import DEFAULT_KV
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph
from edgekit.rounded import rounded_as_native
from edgekit.scheme import Scheme
from edgekit.target import HOST, Target, load_target

Progress = Callable[[str, int, int], None]

TRIED_TOKENS = 16
_UNRELATED = 1.5
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
    """A model to be tried on `device` by `program`; without one, by its engine. `ours` is this machine's program.

    `kernels`: "edgekit" or "runtime", whose it runs; `kv`: how keys and values are kept while it is tried.
    """

    model: Path
    device: str
    program: Path | None
    ours: Path | None
    kernels: str = "edgekit"
    kv: str = DEFAULT_KV


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


def host_trial(written: Written) -> Trial:
    """The model's engine on this machine."""
    return Trial(written.file, "local", None, None, written.kernels, written.kv_format)


def try_model(
    trial: Trial, quant: QuantGraph, ids: Tokens, *, cache: Cache, progress: Progress
) -> tuple[Agreement, Measurement]:
    """The agreement on the beginning of `ids`, and the coherence over the model's probe.

    The probe is always run by this machine's program, because it is long; with the cache that the bundle will have.

    Raises:
        GateFailed: the logits are further apart than rounding explains, or depend on how the tokens were divided.
    """
    tokens = ids[: min(TRIED_TOKENS, quant.graph.context)]
    is_ours, vocab = trial.kernels == "edgekit", quant.graph.decoder.vocab
    reference = rounded_as_native(quant) if is_ours else quant
    progress(_STAGE.format("run the quantized graph"), 0, 0)
    expected = _graph_logits(reference, tokens, cache)
    progress(_STAGE.format(f"run the model on {trial.device}"), 0, 0)
    with open_device(trial.device) as device:
        chosen = None if trial.program is None else trial.kv
        runner = Runner(device, model=trial.model, program=trial.program, kv=chosen)
        prefilled = runner.logits(tokens, vocab=vocab)
        decoded = runner.logits(tokens, vocab=vocab, chunk=1)
    if is_ours and not np.array_equal(prefilled, decoded):
        raise GateFailed("the self-test failed: prefill and decode give different logits", hint=_REPORT)
    error = max(relative_error(expected, found) for found in (prefilled, decoded))
    decoder = quant.graph.decoder
    cached = decoder.head_dim if trial.kv == "q8" else 0
    allowed = tolerance(quant.schemes.values(), decoder.layers, compares_rounded=is_ours, cached=cached)
    if error > allowed and is_ours:
        rounding = relative_error(_graph_logits(quant, tokens, cache), expected)
        allowed = max(allowed, _UNRELATED * rounding)
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


def tolerance(schemes: Iterable[Scheme], layers: int, *, compares_rounded: bool, cached: int = 0) -> float:
    """The share that rounding explains; `compares_rounded` if the reference rounds as the engine does.

    `cached`: how many keys or values the engine rounds to int8 together, which the reference does not; 0 for none.
    """
    groups = [scheme.group for scheme in schemes if not scheme.is_float]
    of_cache = math.sqrt(2 * layers) * _rounding(cached)
    if not groups:
        return math.hypot(math.sqrt(2 * layers) * 2.0**-12, of_cache)
    one = _rounding(max(groups))
    return math.hypot(one if compares_rounded else math.sqrt(4 * layers + 1) * one, of_cache)


def _rounding(group: int) -> float:
    """The largest relative error of a group that is rounded to int8."""
    return math.sqrt(group) / (127 * math.sqrt(12))


def _graph_logits(quant: QuantGraph, tokens: Tokens, cache: Cache) -> Logits:
    """The graph's logits on ONNX Runtime in float32."""
    with cache.scratch() as folder:
        portable_onnx(quant, folder / "model.onnx")
        # Unpacked, ONNX Runtime widens most matrices before it runs: 4 bytes for each weight of the model.
        packs = any(not scheme.is_float for scheme in quant.schemes.values())
        threads = len(os.sched_getaffinity(0))
        with Session(folder / "model.onnx", threads=threads, prepack=packs, exact=True) as session:
            return session.prefill(tokens.tolist())
