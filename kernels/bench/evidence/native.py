"""edgekit: programs built from this source tree, bundles compiled by the package, both run as they are shipped."""

import json
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.testing import make_checkpoint
from evidence.machine import ROOT
from evidence.progress import ToolFailed, run, say
from evidence.shapes import CONTEXT, SHAPES, Product

_FOLDERS: Final = ("edgekit", "targets", "kernels/gemm", "kernels/include")  # what a bundle depends on


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens per second by test and depth; bytes of weights a token reads; the read ceiling seen in the same run."""

    rates: dict[tuple[str, int], float]
    bytes_per_token: float
    ceiling: float  # bytes per second

    def share(self, rate: float) -> tuple[float, ...]:
        """How much of the ceiling so many tokens a second read, in a tuple; empty if the ceiling was not measured."""
        return (rate * self.bytes_per_token / self.ceiling,) if self.ceiling > 0 else ()


def build(work: Path, triple: str, *targets: str) -> Path:
    """The build folder of this source tree for `triple`, its targets up to date."""
    folder = work / f"{triple.partition('-')[0]}-build"
    say(f"building {', '.join(targets)} for {triple} ...")
    options = [f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'kernels' / 'cmake' / 'zig.cmake'}", f"-DEDGEKIT_TRIPLE={triple}"]
    options += [f"-DEDGEKIT_PYTHON_EXE={sys.executable}", "-DEDGEKIT_BENCH=ON", "-DEDGEKIT_RUNNER=ON"]
    # Fresh: the folder may be that of another tree, which cmake refuses otherwise.
    run(["cmake", "--fresh", "-G", "Ninja", "-S", ROOT, "-B", folder, *options, "-DCMAKE_BUILD_TYPE=Release"])
    run(["cmake", "--build", folder, "--target", *targets, "-j2"])
    return folder


class Programs:
    """What this source tree builds for this machine: edgekit-run, the operators for ONNX Runtime, and gemm_bench."""

    def __init__(self, work: Path) -> None:
        self._work = work
        triple = f"{platform.machine()}-linux-musl"
        folder = build(work, triple, "edgekit-run", "edgekit_onnxruntime", "gemm_bench")
        self.gemm_bench = folder / "kernels" / "bench" / "gemm_bench"
        self.runner = work / "runners" / triple / "edgekit-run"
        self.runner.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "devices" / "runner" / "edgekit-run", self.runner)
        operators = folder / "kernels" / "adapters" / "onnxruntime" / "libedgekit_onnxruntime.so"
        shutil.copy2(operators, self.runner.parent)

    def edgekit(self, *words: str) -> str:
        """What the command edgekit prints; its bundles get this runner."""
        return run([sys.executable, "-m", "edgekit", *words], env={"EDGEKIT_RUNNERS": str(self._work / "runners")})

    def bundle(self, shape: str, recipe: str, *options: str) -> Path:
        """A bundle of random weights for this host, compiled under `work` unless this tree has compiled it."""
        checkpoint = self._checkpoint(shape)
        name = "-".join([shape, recipe.replace(",", "+").replace("=", "-"), *(o.strip("-") for o in options)])
        bundle, stamp = self._work / name, self._work / f"{name}.made-from"
        made_from = _tree()
        if not bundle.exists() or not stamp.exists() or stamp.read_text() != made_from:
            say(f"compiling {name} ...")
            compile_ = ["compile", str(checkpoint), "--target", "host", "--recipe", recipe, "-o", str(bundle)]
            self.edgekit(*compile_, "--force", *options)
            stamp.write_text(made_from)
        return bundle

    def _checkpoint(self, name: str) -> Path:
        folder = self._work / f"{name}-checkpoint"
        shape = SHAPES[name]
        if not (folder / "tokenizer_config.json").exists():
            say(f"writing {folder.name} ...")
            make_checkpoint(
                folder,
                layers=shape.layers,
                hidden=shape.hidden,
                intermediate=shape.intermediate,
                heads=shape.heads,
                kv_heads=shape.kv_heads,
                vocab=shape.vocab,
                tied=shape.tied,
                context=CONTEXT,
            )
        return folder

    def bench(self, bundle: Path, *, prompt: int, generated: int, threads: int, depth: int = 0) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench.json"
            command: list[str | Path] = [self.runner, "bench", bundle / "model.edge", "-p", str(prompt)]
            command += ["-n", str(generated), "-d", str(depth), "-r", "1", "-t", str(threads), "--json", file]
            run(command)
            return read_result(json.loads(file.read_text()), threads)

    def product(self, kernel: str, product: Product, *, group: int, threads: int, seconds: float) -> "Timed":
        """One product by one kernel, its weights read from memory."""
        command: list[str | Path] = [self.gemm_bench, "--kernel", kernel, "--group", str(group), "--json"]
        command += ["--shape", f"{product.m},{product.n},{product.k}"]
        command += ["--threads", str(threads), "--seconds", str(seconds)]
        for line in run(command).splitlines():
            row = json.loads(line)
            if row.get("kernel") == kernel:
                return Timed(row["median_seconds"], row["bytes"])
        raise ToolFailed(f"gemm_bench did not run {kernel}")


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one product, and the bytes of its weights."""

    seconds: float
    weight_bytes: float


def read_result(table: dict[str, Any], threads: int) -> Result:
    """The measurement that `edgekit-run bench --json` wrote."""
    ceilings = table["bandwidth"].get("read_ceiling_bytes_per_second", {})
    return Result(
        rates={(row["test"], int(row["depth"])): float(row["tokens_per_second"]) for row in table["rows"]},
        bytes_per_token=float(table["bandwidth"]["bytes_per_token"]),
        ceiling=float(ceilings.get(str(threads), 0)),
    )


def _tree() -> str:
    """What the parts of this tree that a bundle depends on hold, changes that are not committed included."""
    try:
        parts = [run(["git", "-C", ROOT, "rev-parse", f"HEAD:{folder}"]) for folder in _FOLDERS]
        return "".join(parts) + run(["git", "-C", ROOT, "diff", "HEAD", "--stat", "--", *_FOLDERS])
    except ToolFailed:
        return "no git"
