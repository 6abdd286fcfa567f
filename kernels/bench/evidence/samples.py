"""Samples taken in turn, and what is concluded from them: ratios of pairs, medians, bars that are met or not."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def alternate(
    ours: Callable[[], T], theirs: Callable[[], U], rounds: int, *, warm: bool = True
) -> Iterator[tuple[T, U]]:
    """`rounds` pairs, each taken right after the other; with `warm` after one of each that is not counted."""
    if warm:
        ours(), theirs()
    for _ in range(rounds):
        yield ours(), theirs()


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to reach: at least `value`."""

    of: str  # "ratio", "ours" or "share"
    value: float

    def judge(self, figures: Sequence[float]) -> str:
        """By the median, and whether all pairs agree."""
        met = statistics.median(figures) >= self.value
        agreed = all((figure >= self.value) == met for figure in figures)
        return f"{'met' if met else 'NOT met'}{'' if agreed else ' by the median'}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: samples of ours and theirs, pair by pair, and what they are held against.

    `part`: of the command that took them. `shares`: how much of the read ceiling of the same run, `ceilings` in GB/s,
    ours read. `higher_is_better` is false for times, whose ratio is theirs over ours. `our_rates`, `their_rates`: GB of
    weights a second.
    """

    part: str
    shape: str
    test: str
    ours_name: str
    theirs_name: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    shares: tuple[float, ...] = ()
    their_shares: tuple[float, ...] = ()
    ceilings: tuple[float, ...] = ()
    our_rates: tuple[float, ...] = ()
    their_rates: tuple[float, ...] = ()
    bars: tuple[Bar, ...] = ()
    higher_is_better: bool = True

    @property
    def ratios(self) -> tuple[float, ...]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return tuple(a / b if self.higher_is_better else b / a for a, b in pairs)

    def figures(self, of: str) -> tuple[float, ...]:
        return {"ratio": self.ratios, "ours": self.ours, "share": self.shares}[of]

    def verdicts(self) -> list[tuple[Bar, str]]:
        """Each bar with its judgement; "not measured" where there are no samples."""
        return [(bar, bar.judge(figures) if (figures := self.figures(bar.of)) else "not measured") for bar in self.bars]


def spread(samples: Sequence[float]) -> str:
    """Median (lowest to highest), four digits; the sample itself if there is one, "-" of none."""
    if not samples:
        return "-"
    low, middle, high = (_digits(f(samples)) for f in (min, statistics.median, max))
    return middle if len(samples) == 1 else f"{middle} ({low} to {high})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
