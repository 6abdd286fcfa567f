"""How far a quantized model has drifted from its float reference, and the probe that carries the reference to a device.

Metrics as in llama.cpp's `--kl-divergence`: divergence of the next-token distributions in nats, share of equal argmax,
perplexity. rep-4 after Welleck et al., "Neural Text Generation with Unlikelihood Training", ICLR 2020.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import ge, le, lt
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import GateFailed
from edgekit.units import rounded

VERDICTS = ("coherent", "degraded", "collapsed")  # best first
Logits = NDArray[np.float32]
Tokens = NDArray[np.uint32]

PROBE_VERSION = 1
PROBE_TOP = 128
PROBE_WINDOW = 256
# Each scored token takes 1 KB of the program file.
PROBE_TOKENS = 1024
CONTINUATIONS = 8
CONTINUATION_TOKENS = 100
PROMPT_TOKENS = 16
# version, sequences, top, continuations, continuation_tokens, reference_rep4, reference_nll_sum, scored, reserved
_PROBE_HEADER = struct.Struct("<5IfdQ24x")
# A decoded token reads every weight by itself; measured at 1.1 B in float32 it takes as long as 12 prefilled ones.
_DECODE_WEIGHT = 12
# Rows of logits turned to float64 at a time: 32 rows of 150,000 words take 38 MB.
_ROWS_AT_ONCE = 32


class ReferenceModel(Protocol):
    """The float graph, as the probe needs it: logits of every position, and one more token at a time."""

    def reset(self) -> None: ...
    def prefill(self, ids: Sequence[int]) -> Logits: ...
    def decode(self, token: int) -> Logits: ...


@dataclass(frozen=True, slots=True)
class Coherence:
    """Agreement of a model with its reference over `tokens` predicted tokens; divergences in nats."""

    tokens: int
    perplexity: float
    reference_perplexity: float
    kld_mean: float
    kld_p99: float
    same_top: float
    rep4: float
    reference_rep4: float

    @property
    def verdict(self) -> str:
        """*coherent*, *degraded* or *collapsed*."""
        figures = asdict(self)
        return next((verdict for verdict in VERDICTS[:-1] if not _missed(figures, verdict)), VERDICTS[-1])

    def as_json(self) -> dict[str, float | int | str]:
        """The `coherence` part of a measurement."""
        return {
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "reference_perplexity": self.reference_perplexity,
            "kld_mean": self.kld_mean,
            "kld_p99": self.kld_p99,
            "same_top": self.same_top,
            "rep4": self.rep4,
            "reference_rep4": self.reference_rep4,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class _Bound:
    """A figure's limit, or how many times the figure `of` that limit is; `miss` says how the figure misses it."""

    name: str
    miss: str
    limit: float
    of: str = ""


# What a verdict demands besides finite figures; the runner judges by the same (devices/runner/probe.cc).
_BOUNDS: Final[Mapping[str, Sequence[_Bound]]] = {
    "coherent": (
        _Bound("kld_mean", ">=", 0.5),
        _Bound("same_top", "<", 0.7),
        _Bound("rep4", ">", 1.5, of="reference_rep4"),
        _Bound("perplexity", ">=", 2, of="reference_perplexity"),
    ),
    "degraded": (_Bound("kld_mean", ">", 2), _Bound("same_top", "<", 0.4)),
}
_KEEPS: Final[Mapping[str, Callable[[float, float], bool]]] = {">=": lt, ">": le, "<": ge}


def _missed(figures: Mapping[str, Any], verdict: str) -> list[str]:
    """What keeps figures from being of `verdict` or better. Those that are absent keep them from nothing."""
    values = {name: value if isinstance(value, float | int) else math.nan for name, value in figures.items()}
    judged = {bound.name: None for bounds in _BOUNDS.values() for bound in bounds}
    missed = [f"{name} is not a finite number" for name in judged if not math.isfinite(values.get(name, 0))]
    for bound in _BOUNDS[verdict]:
        value, unit = values.get(bound.name, math.nan), values.get(bound.of) if bound.of else 1
        if math.isfinite(value) and unit is not None and not _KEEPS[bound.miss](value, bound.limit * unit):
            times = f" x {bound.of} {rounded(unit)}" if bound.of else ""
            missed.append(f"{bound.name} {rounded(value)} {bound.miss} {bound.limit:g}{times}")
    return missed


class Tally:
    """Sums the agreement of two models window by window, so that no more than one window's logits are in memory."""

    def __init__(self) -> None:
        self._divergences: list[NDArray[np.float64]] = []
        self._nll = 0.0
        self._reference_nll = 0.0
        self._same = 0

    def add(self, reference: Logits, logits: Logits, targets: Tokens) -> None:
        """Counts rows of logits [r, vocab] that predict `targets` [r]."""
        for start in range(0, len(targets), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self._add(log_softmax(reference[rows]), log_softmax(logits[rows]), targets[rows])

    def _add(self, reference: NDArray[np.float64], found: NDArray[np.float64], targets: Tokens) -> None:
        index = np.arange(len(targets))
        self._reference_nll -= float(reference[index, targets].sum())
        self._nll -= float(found[index, targets].sum())
        self._same += int((reference.argmax(-1) == found.argmax(-1)).sum())
        self._divergences.append((np.exp(reference) * (reference - found)).sum(-1))

    def coherence(self, *, rep4: float, reference_rep4: float) -> Coherence:
        """The figures over everything added; at least one row must have been."""
        divergences = np.sort(np.concatenate(self._divergences))
        tokens = len(divergences)
        return Coherence(
            tokens=tokens,
            perplexity=_exp(self._nll / tokens),
            reference_perplexity=_exp(self._reference_nll / tokens),
            kld_mean=float(divergences.mean()),
            kld_p99=nearest_rank(divergences, 0.99),
            same_top=self._same / tokens,
            rep4=rep4,
            reference_rep4=reference_rep4,
        )


def metrics(
    reference: Logits, logits: Logits, targets: Tokens, *, rep4: float = 0.0, reference_rep4: float = 0.0
) -> Coherence:
    """Agreement of logits [r, vocab] with the reference's, where row i predicts targets[i]; the full divergence."""
    tally = Tally()
    tally.add(reference, logits, targets)
    return tally.coherence(rep4=rep4, reference_rep4=reference_rep4)


def check_gate(figures: Mapping[str, Any], gate: str | None) -> None:
    """Nothing, if the verdict of the `coherence` part of a measurement is `gate` or better, or there is no gate.

    Raises:
        GateFailed: it is worse.
    """
    verdict = figures.get("verdict")
    if gate is None or (verdict in VERDICTS and VERDICTS.index(verdict) <= VERDICTS.index(gate)):
        return
    missed = _missed(figures, gate)
    told = f": {', '.join(missed)}" if missed else ""
    raise GateFailed(
        f"the model is {verdict} and --gate asks for {gate}{told}", hint="a recipe with more bits keeps more of it"
    )


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, in float64, along the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def nearest_rank(rising: NDArray[np.float64], share: float) -> float:
    """The smallest value that at least `share` of the sorted values do not exceed."""
    return float(rising[max(0, math.ceil(share * len(rising)) - 1)])


def rep4(continuations: Sequence[Sequence[int]]) -> float:
    """1 - unique/total 4-grams, the mean over continuations; those shorter than four tokens say nothing."""
    shares = []
    for tokens in continuations:
        grams = [tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else 0.0


def windows(ids: Tokens, length: int) -> list[Tokens]:
    """`ids` cut into consecutive windows of `length`; the last may be shorter, but predicts at least one token.

    Within a window every token but the first is predicted, from the tokens of that window before it.
    """
    cut = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [window for window in cut if len(window) >= 2]


def make_probe(
    model: ReferenceModel,
    ids: Tokens,
    *,
    context: int,
    begin: int | None = None,
    continuations: int = CONTINUATIONS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> bytes:
    """The probe section for `model` over the beginning of the held-out text `ids` (kernels/program/probe_format.h).

    Every sequence starts with the token `begin`, where there is one, and all tokens but the first are scored.
    Prompts to be continued are taken from places of the text that are equally far apart.
    """
    lead = np.array([] if begin is None else [begin], np.uint32)
    length = min(context, PROBE_WINDOW)
    ids = ids[:PROBE_TOKENS]
    sequences = [np.concatenate([lead, window]) for window in windows(ids, length - len(lead))]
    begun = [np.concatenate([lead, prompt]) for prompt in prompts(ids, continuations, length)]
    count = min(CONTINUATION_TOKENS, context - PROMPT_TOKENS - len(lead))
    total = sum(map(len, sequences)) + _DECODE_WEIGHT * len(begun) * count
    done = 0
    nll, scored, top = 0.0, 0, 0
    body = bytearray()
    for sequence in sequences:
        model.reset()
        logits = model.prefill(sequence.tolist())
        top = min(PROBE_TOP, logits.shape[-1])
        part, part_nll = _probe_sequence(sequence, logits, top)
        body += part
        nll += part_nll
        scored += len(sequence) - 1
        done += len(sequence)
        on_progress(done, total)
    texts: list[list[int]] = []
    for prompt in begun:
        body += struct.pack("<I", len(prompt)) + prompt.astype("<u4").tobytes()
        texts.append([])
        for token in continued(model, prompt, count):
            texts[-1].append(token)
            done += _DECODE_WEIGHT
            on_progress(done, total)
    header = _PROBE_HEADER.pack(PROBE_VERSION, len(sequences), top, len(begun), count, rep4(texts), nll, scored)
    return header + bytes(body)


def _probe_sequence(sequence: Tokens, logits: Logits, top: int) -> tuple[bytes, float]:
    """The bytes of one sequence, first_scored = 1, and the sum of -ln p of its scored tokens."""
    parts = [struct.pack("<2I", len(sequence), 1), sequence.astype("<u4").tobytes()]
    nll = 0.0
    for start in range(0, len(sequence) - 1, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(sequence) - 1)
        logp = log_softmax(logits[start:stop])
        order = np.argsort(-logp, axis=-1, kind="stable")[:, :top]
        for row, target in enumerate(sequence[start + 1 : stop + 1]):
            nll -= float(logp[row, target])
            parts.append(struct.pack("<f", logp[row, target]))
            parts.append(order[row].astype("<u4").tobytes())
            parts.append(logp[row, order[row]].astype("<f4").tobytes())
    return b"".join(parts), nll


def prompts(ids: Tokens, count: int, length: int) -> list[Tokens]:
    """`count` prompts; none where a context of `length` cannot hold one and what follows, fewer where they overlap."""
    if length < PROMPT_TOKENS + 8:
        return []
    count = min(count, len(ids) // PROMPT_TOKENS)
    return [ids[at * len(ids) // count :][:PROMPT_TOKENS] for at in range(count)]


def continued(model: ReferenceModel, prompt: Tokens, count: int) -> Iterator[int]:
    """`count` greedy tokens after `prompt`; an end-of-text token does not stop it."""
    model.reset()
    token = int(model.prefill(prompt.tolist())[-1].argmax())
    yield token
    for _ in range(count - 1):
        token = int(model.decode(token).reshape(-1).argmax())
        yield token


def _exp(nats: float) -> float:
    """e to the power, kept below the largest float64 so that it stays a JSON number."""
    return math.exp(min(nats, 700.0))
