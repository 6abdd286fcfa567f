"""Whole models beside llama.cpp: prefill, decode, decode at a depth, decode beside another busy process."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evidence import llama_cpp
from evidence.gguf_models import bytes_per_token, used_format
from evidence.native import Programs, Result
from evidence.progress import say
from evidence.samples import Bar, Comparison, alternate
from evidence.shapes import SHAPES

PROMPT: Final = 256
GENERATED: Final = 64
DEPTH: Final = 4096
SHORT: Final = 32  # tokens of decode where one run takes long


@dataclass(frozen=True, slots=True)
class Pair:
    """A shape in our recipe and in llama.cpp's type, with the bars its figures have to reach."""

    shape: str
    recipe: str
    against: str
    prefill: tuple[Bar, ...] = ()
    decode: tuple[Bar, ...] = ()


PAIRS: Final = (
    Pair("1.1b", "q4g128", "Q4_0", (Bar("ratio", 2.0),), (Bar("ratio", 1.15), Bar("share", 0.92))),
    Pair("1.1b", "q3g128", "Q3_K", (), (Bar("ratio", 1.9), Bar("share", 0.85))),
    Pair("1.1b", "q2g64,head=q4g64", "Q2_K", (Bar("ratio", 3.0),), (Bar("ratio", 1.7), Bar("share", 0.85))),
    Pair("1.1b", "t2g128", "TQ2_0", (), (Bar("ratio", 1.8),)),
    Pair("135m", "q4g128", "Q4_0", (Bar("ratio", 2.0),), (Bar("ratio", 1.5),)),
    Pair("135m", "q2g64,head=q4g64", "Q2_K"),
)
BUSY_BAR: Final = Bar("ours", 0.4)
DEPTH_BAR: Final = Bar("ratio", 1.0)


class Peers:
    """Runs both programs; models are made when they are first asked for."""

    def __init__(self, work: Path, threads: int) -> None:
        self._work = work
        self._threads = threads
        self.programs = Programs(work)
        self._llama = llama_cpp.build(work)

    def prepare(self, parts: Sequence[str]) -> None:
        """Makes the models of llama.cpp's parts, so that nothing is compiled between two runs."""
        wanted = (
            PAIRS if "speed" in parts else [p for p in PAIRS if p.against == "Q4_0" and {"depth", "busy"} & {*parts}]
        )
        for pair in wanted:
            self.programs.bundle(pair.shape, pair.recipe)
            llama_cpp.model(self._work, pair.shape, pair.against)

    def ours(self, shape: str, recipe: str, *, prompt: int, generated: int, depth: int = 0) -> Result:
        bundle = self.programs.bundle(shape, recipe)
        return self.programs.bench(bundle, prompt=prompt, generated=generated, depth=depth, threads=self._threads)

    def theirs(
        self, shape: str, against: str, *, prompt: int, generated: int, depths: tuple[int, ...] = (0,), flash: str = "0"
    ) -> dict[llama_cpp.Key, float]:
        file = llama_cpp.model(self._work, shape, against)
        return llama_cpp.bench(
            self._llama,
            file,
            wanted=used_format(against, SHAPES[shape].hidden),
            prompt=prompt,
            generated=generated,
            threads=self._threads,
            depths=depths,
            flash=flash,
        )


def speed(peers: Peers, pair: Pair, rounds: int) -> list[Comparison]:
    """Prefill and decode of one pair."""
    say(f"{pair.shape}: {pair.recipe} beside {pair.against}")
    samples = alternate(
        lambda: peers.ours(pair.shape, pair.recipe, prompt=PROMPT, generated=GENERATED),
        lambda: peers.theirs(pair.shape, pair.against, prompt=PROMPT, generated=GENERATED),
        rounds,
    )
    ours, theirs = zip(*samples, strict=True)
    found = []
    for test, bars in ((f"pp{PROMPT}", pair.prefill), (f"tg{GENERATED}", pair.decode)):
        rates, their_rates = [r.rates[test, 0] for r in ours], [r[test, 0] for r in theirs]
        decodes = test.startswith("tg")
        # What llama.cpp would read of the same ceiling, which it does not measure itself.
        their_bytes = bytes_per_token(SHAPES[pair.shape], pair.against)
        ceilings = [r.ceiling for r in ours] if decodes and all(r.ceiling for r in ours) else []
        found.append(
            Comparison(
                part="speed",
                shape=pair.shape,
                test=test,
                ours_name=pair.recipe,
                theirs_name=pair.against,
                unit="tokens/s",
                ours=tuple(rates),
                theirs=tuple(their_rates),
                shares=tuple(share for r, rate in zip(ours, rates, strict=True) for share in r.share(rate) if ceilings),
                their_shares=tuple(rate * their_bytes / c for rate, c in zip(their_rates, ceilings, strict=False)),
                ceilings=tuple(c / 1e9 for c in ceilings),
                bars=bars,
            )
        )
    return found


def depth(peers: Peers, rounds: int) -> list[Comparison]:
    """How much of its speed decoding keeps when the cache holds DEPTH tokens; llama.cpp with its best attention."""
    say(f"decoding at depth {DEPTH}")
    test = f"tg{SHORT}"

    def ours() -> float:
        deep, flat = (peers.ours("1.1b", "q4g128", prompt=0, generated=SHORT, depth=d).rates for d in (DEPTH, 0))
        return deep[test, DEPTH] / flat[test, 0]

    def theirs() -> float:
        rates = peers.theirs("1.1b", "Q4_0", prompt=0, generated=SHORT, depths=(0, DEPTH), flash="0,1")
        return rates[test, DEPTH] / rates[test, 0]

    pairs = list(alternate(ours, theirs, rounds, warm=False))
    return [_kept("depth", "1.1b", f"{test} at depth {DEPTH} / at 0", DEPTH_BAR, pairs)]


def busy(peers: Peers, rounds: int) -> list[Comparison]:
    """How much of its speed decoding keeps beside one other busy process."""
    found = []
    for shape in SHAPES:
        say(f"{shape}: decoding beside a busy process")

        def ours(shape: str = shape) -> float:
            return peers.ours(shape, "q4g128", prompt=0, generated=SHORT).rates[f"tg{SHORT}", 0]

        def theirs(shape: str = shape) -> float:
            return peers.theirs(shape, "Q4_0", prompt=0, generated=SHORT)[f"tg{SHORT}", 0]

        pairs = []
        for our_quiet, their_quiet in alternate(ours, theirs, rounds):
            with busy_process():
                pairs.append((ours() / our_quiet, theirs() / their_quiet))
        found.append(_kept("busy", shape, f"tg{SHORT} busy / quiet", BUSY_BAR, pairs))
    return found


def _kept(part: str, shape: str, test: str, bar: Bar, pairs: list[tuple[float, float]]) -> Comparison:
    ours, theirs = zip(*pairs, strict=True)
    return Comparison(
        part=part, shape=shape, test=test, ours_name="q4g128", theirs_name="Q4_0", unit="of the speed",
        ours=ours, theirs=theirs, bars=(bar,),
    )  # fmt: skip


@contextmanager
def busy_process() -> Iterator[subprocess.Popen[bytes]]:
    """One process that computes and never waits, for as long as the block lasts."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
