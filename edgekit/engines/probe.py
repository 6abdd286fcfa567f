"""Compare a model that the host runs with the float reference that its probe recorded (kernels/program/probe_format.h).

The divergence is over the reference's likeliest tokens and one bucket for all others, as on a device.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.coherence import PROBE_VERSION, Coherence, log_softmax, nearest_rank, rep4
from edgekit.engines import Session
from edgekit.errors import Damaged, Unsupported

Tokens = npt.NDArray[np.uint32]

_HEADER = struct.Struct("<5IfdQ24x")
_LEAST_SHARE = 1e-12  # of a distribution, so that its logarithm exists


@dataclass(slots=True)
class _Reader:
    """Little-endian words one after the other, never past the end."""

    data: bytes
    at: int = 0

    def take(self, count: int, dtype: str) -> npt.NDArray[np.generic]:
        size = count * np.dtype(dtype).itemsize
        if size > len(self.data) - self.at:
            raise _damaged("it is too short")
        self.at += size
        return np.frombuffer(self.data, dtype, count, self.at - size)

    def number(self) -> int:
        return int(self.take(1, "<u4")[0])

    def ids(self, count: int, session: Session) -> Tokens:
        ids = self.take(count, "<u4").astype(np.uint32)
        if not 0 < count <= session.context or ids.max() >= session.vocab:
            raise _damaged("a sequence does not fit the model")
        return ids


def run_probe(session: Session, data: bytes) -> Coherence:
    """The agreement of `session` with the reference.

    Raises:
        Damaged: the probe contradicts itself or the model.
        Unsupported: a version of it that is not known.
    """
    if len(data) < _HEADER.size:
        raise _damaged("it is too short")
    version, sequences, top, continuations, length, reference_rep4, reference_nll, scored = _HEADER.unpack_from(data)
    if version != PROBE_VERSION:
        raise Unsupported(f"the probe has version {version}", hint=f"this edgekit reads version {PROBE_VERSION}")
    if not 0 < top <= session.vocab or scored == 0 or not math.isfinite(reference_nll):
        raise _damaged("its header contradicts the model")
    reader = _Reader(data, _HEADER.size)
    parts = [_score(session, reader, top) for _ in range(sequences)]
    divergences = np.sort(np.concatenate([part[0] for part in parts] or [np.empty(0)]))
    if len(divergences) != scored:
        raise _damaged("it does not hold as many tokens as it says")
    repeated = rep4([_continue(session, reader, length) for _ in range(continuations)])
    return Coherence(
        tokens=scored,
        perplexity=math.exp(min(sum(part[1] for part in parts) / scored, 700.0)),
        reference_perplexity=math.exp(min(reference_nll / scored, 700.0)),
        kld_mean=float(divergences.mean()),
        kld_p99=nearest_rank(divergences, 0.99),
        same_top=sum(part[2] for part in parts) / scored,
        rep4=repeated,
        reference_rep4=reference_rep4,
    )


def _score(session: Session, reader: _Reader, top: int) -> tuple[npt.NDArray[np.float64], float, int]:
    """Of one sequence: each scored token's divergence, the sum of -ln p, and how often the likeliest token agrees."""
    count, first = reader.number(), reader.number()
    ids = reader.ids(count, session)
    if not 0 < first <= count:
        raise _damaged("a sequence scores tokens that it does not have")
    entry = np.dtype([("logp", "<f4"), ("ids", "<u4", (top,)), ("top", "<f4", (top,))])
    record = np.frombuffer(reader.take((count - first) * entry.itemsize, "u1").tobytes(), entry)
    if record["ids"].max(initial=0) >= session.vocab:
        raise _damaged("it names a token that the model does not have")
    session.reset()
    logp = log_softmax(session.prefill(ids.tolist())[first - 1 : count - 1])
    found = np.take_along_axis(logp, record["ids"].astype(np.int64), axis=1)
    reference = record["top"].astype(np.float64)
    shares = np.exp(reference)
    divergence = (shares * (reference - found)).sum(-1)
    if top < session.vocab:
        rest = np.maximum(1 - shares.sum(-1), _LEAST_SHARE)
        divergence += rest * np.log(rest / np.maximum(1 - np.exp(found).sum(-1), _LEAST_SHARE))
    nll = -float(logp[np.arange(count - first), ids[first:]].sum())
    return divergence, nll, int((logp.argmax(-1) == record["ids"][:, 0]).sum())


def _continue(session: Session, reader: _Reader, length: int) -> list[int]:
    """A prompt continued greedily, past any token that ends a text, as the reference did."""
    ids = reader.ids(reader.number(), session)
    session.reset()
    logits = session.prefill(ids.tolist(), last_only=True)[0]
    made: list[int] = []
    while len(made) < length:
        made.append(int(logits.argmax()))
        if len(made) == length or session.position == session.context:
            break
        logits = session.decode(made[-1])
    return made


def _damaged(why: str) -> Damaged:
    return Damaged(f"the probe is damaged: {why}", hint="compile the model again")
