"""One model in every engine: with edgekit's kernels inside, beside the native program and beside the runtime's own."""

import importlib.metadata
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from evidence.native import Programs
from evidence.progress import say
from evidence.samples import Bar, Comparison, alternate

_SHAPE: Final = "135m"
_RECIPE: Final = "q4g128"
_CONTEXT: Final = ("--context", "1024")
_OF_NATIVE, _OF_STOCK = Bar("ratio", 0.85), Bar("ratio", 1.3)


def compare(programs: Programs, threads: int, rounds: int) -> Iterator[Comparison]:
    """Prefill and decoding by each runtime that can hold edgekit's kernels."""
    native = programs.bundle(_SHAPE, _RECIPE, *_CONTEXT)
    for engine in ("onnxruntime", "executorch"):
        runtime = f"{engine} {importlib.metadata.version(engine)}"
        say(f"{_SHAPE}: {_RECIPE} in {runtime}")
        inside = programs.bundle(_SHAPE, _RECIPE, *_CONTEXT, "--engine", engine)
        stock = programs.bundle(_SHAPE, _RECIPE, *_CONTEXT, "--engine", engine, "--portable")
        for theirs, name, bar in ((native, "native", _OF_NATIVE), (stock, runtime, _OF_STOCK)):
            ours = partial(_rates, programs, inside, threads)
            pairs = list(alternate(ours, partial(_rates, programs, theirs, threads), rounds))
            for test in ("pp256", "tg64"):
                yield Comparison(
                    part="engines",
                    shape=_SHAPE,
                    test=test,
                    ours_name=f"{_RECIPE}, edgekit in {runtime}",
                    theirs_name=f"{_RECIPE}, {name}",
                    unit="tokens/s",
                    ours=tuple(a[test] for a, _ in pairs),
                    theirs=tuple(b[test] for _, b in pairs),
                    bars=(bar,) if test.startswith("tg") else (),
                )


def _rates(programs: Programs, bundle: Path, threads: int) -> dict[str, float]:
    """Tokens a second by test."""
    words = ["-p", "256", "-n", "64", "-r", "1", "-t", str(threads), "-o", "json"]
    rows = json.loads(programs.edgekit("bench", str(bundle), *words))
    return {row["test"]: float(row["tokens_per_second"]) for row in rows}
