"""Choose the next token from logits, as edgekit-run does: the same options, the same random numbers.

Repetition penalty, temperature, top-k, top-p, in this order; a draw uses SplitMix64 (Steele, Lea and Flood, OOPSLA
2014), 24 bits of it.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Sampler:
    """Draws tokens. Temperature 0 always takes the likeliest; `top_k` 0 and `top_p` 1 keep all."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    seen: set[int] = field(default_factory=set)

    def see(self, token: int) -> None:
        """Makes the penalty know a token of the text so far."""
        self.seen.add(token)

    def sample(self, logits: Float32) -> int:
        """The next token after logits [vocab]."""
        logits = self._penalized(logits)
        if self.temperature == 0:
            return int(logits.argmax())
        order = self._likeliest(logits)
        scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / self.temperature
        weights = np.exp(scaled)
        reached = np.cumsum(weights)
        # The fewest likeliest tokens that hold the share.
        kept = min(int(np.searchsorted(reached, self.top_p * reached[-1])) + 1, len(order))
        drawn = int(np.searchsorted(reached[:kept], self._draw() * reached[kept - 1], side="right"))
        return int(order[min(drawn, kept - 1)])

    def _likeliest(self, logits: Float32) -> npt.NDArray[np.intp]:
        """The `top_k` likeliest tokens in falling order, of equals the first."""
        falling = -logits
        if not 0 < self.top_k < len(logits):
            return falling.argsort(kind="stable")
        # Sorting all of a large vocabulary takes longer than many a model takes for a token.
        last = np.partition(falling, self.top_k - 1)[self.top_k - 1]
        kept = np.flatnonzero(~(falling > last))
        return kept[falling[kept].argsort(kind="stable")][: self.top_k]

    def _penalized(self, logits: Float32) -> Float32:
        if self.repetition_penalty == 1 or not self.seen:
            return logits
        logits = logits.copy()
        seen = sorted(self.seen)
        factor = np.float32(self.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        return logits

    def _draw(self) -> float:
        """A number in [0, 1)."""
        self.seed = (self.seed + 0x9E3779B97F4A7C15) & _MASK
        z = self.seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
        return (z >> 40) * 2.0**-24
