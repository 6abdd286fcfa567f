"""Modelled cycles per 32 weights of the ARM kernels, and of llama.cpp's built from source beside them.

Each kernel runs once under QEMU, which writes down what it executes; llvm-mca counts the cycles of just that, as if
everything were in the first cache and every branch foreseen: a lower bound on cycles, good for comparing loops of one
style. No ARM machine is involved.

    python kernels/bench/arm_cycles.py --work /tmp/peers

needs edgekit with its extra `test`, qemu-aarch64 (Debian: qemu-user-static), and llvm-mca and llvm-objdump of LLVM 22
(Debian: llvm-22).
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
from evidence import llama_cpp
from evidence.executed import (
    Instruction,
    NotExecuted,
    as_source,
    calls,
    check_products,
    executed,
    find_function,
    read_addresses,
    read_program,
    total_cycles,
)
from evidence.machine import ROOT, commit
from evidence.native import build
from evidence.progress import ON_PATH, ToolFailed, require, run, say
from evidence.tables import NoSuchPlace, markdown_table, replace_place

_HERE: Final = Path(__file__).parent
RESULTS: Final = _HERE / "RESULTS.md"
TRIPLE: Final = "aarch64-linux-musl"
PASSES: Final = 4
TILE: Final = 16  # outputs
OUTPUTS: Final = 2048  # of a product of one row
DEPTH: Final = 2048  # k of every product
ROWS: Final = 256  # of a prompt
_TILE_ROWS: Final = 4  # of a tile of ours
_TILE_OUTPUTS: Final = 2 * TILE  # that share the rows

# One instruction at a time, by the names of QEMU before and since 8.1.
_STEPS: Final = {"QEMU_SINGLESTEP": "1", "QEMU_ONE_INSN_PER_TB": "1"}
# CPUs that QEMU has all features of, with vectors of 128 bits.
_EMULATED: Final = "max,sve-max-vq=1"


@dataclass(frozen=True, slots=True)
class Core:
    """A core as LLVM models it. Decode widths of LLVM up to 22 are too wide (issue 136374), so `dispatch` is given.

    The models of Cortex-A76, A77 and A78 are those of the A57 up to LLVM 22; Neoverse N1 is the A76's sister.
    `isa` decodes for it, `tile_isa` has its tiles; llama.cpp is compiled with the features `zig`.
    """

    name: str
    mcpu: str
    isa: str
    tile_isa: str
    zig: str
    dispatch: int = 0  # 0: the model's own

    @property
    def has_i8mm(self) -> bool:
        return self.tile_isa == "neon_i8mm"


_I8MM: Final = "generic+v8_2a+fullfp16+dotprod+i8mm"
A72: Final = Core("Cortex-A72", "cortex-a72", "neon", "neon", "cortex_a72")
A76: Final = Core("Cortex-A76", "neoverse-n1", "neon_dotprod", "neon_dotprod", "cortex_a76", 4)
A710: Final = Core("Cortex-A710", "neoverse-n2", "neon_dotprod", "neon_i8mm", _I8MM, 5)
X4: Final = Core("Cortex-X4", "neoverse-v2", "neon_dotprod", "neon_i8mm", _I8MM, 8)
A510: Final = Core("Cortex-A510", "cortex-a510", "neon_dotprod", "neon_i8mm", _I8MM)
CORES: Final = (A72, A76, A710, X4, A510)

SCHEMES: Final = ("q8g128", "q4g128", "q3g128", "q2g128", "q2g64", "t2g128")
_DECODE_BARS: Final = {
    (A76, "q4g128"): 2.3,
    (A76, "q3g128"): 2.7,
    (A76, "q2g128"): 2.4,
    (A72, "q4g128"): 4.2,
    (A72, "q2g128"): 4.2,
    (A710, "q4g128"): 2.3,
    (A710, "q3g128"): 2.3,
    (A710, "q2g128"): 2.3,
}
_TILE_BARS: Final = {A76: 1.1, A710: 0.6}
_LLAMA: Final = {"q4_0_q8_0": "Q4_0", "q3_K_q8_K": "Q3_K", "q2_K_q8_K": "Q2_K", "tq2_0_q8_K": "TQ2_0"}


@dataclass(frozen=True, slots=True)
class Modelled:
    """Instructions and cycles for 32 multiply-adds of weights."""

    kind: str
    label: str
    core: str
    instructions: float
    cycles: float
    bar: float | None = None

    @property
    def verdict(self) -> str:
        # As exact as it is printed: the model is not to be trusted to the third digit.
        met = self.bar is not None and round(self.cycles, 2) <= self.bar
        return "-" if self.bar is None else f"<= {self.bar:g}: {'met' if met else 'NOT met'}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What something executes, and the cycles it is modelled to take."""

    instructions: float
    cycles: float

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.instructions + other.instructions, self.cycles + other.cycles)

    def minus(self, other: "Cost") -> "Cost":
        return self.plus(other.times(-1))

    def times(self, count: int) -> "Cost":
        return Cost(self.instructions * count, self.cycles * count)

    def modelled(self, kind: str, label: str, core: Core, macs: int, bar: float | None = None) -> Modelled:
        return Modelled(kind, label, core.name, self.instructions * 32 / macs, self.cycles * 32 / macs, bar)


class Emulated:
    """A program for aarch64 and what it executes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        command: list[str | Path] = [_tool("llvm-objdump", "llvm-22"), "-d", "--no-show-raw-insn", "-C"]
        self._program = read_program(run([*command, "--mattr=+dotprod,+i8mm,+fullfp16,+sve", file]))

    def run(self, *words: str) -> list[Instruction]:
        """Everything that is executed, in its order."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            emulator = _tool("qemu-aarch64-static", "qemu-user-static", "qemu-aarch64")
            run([emulator, "-cpu", _EMULATED, "-d", "exec,nochain", "-D", log, self._file, *words], env=_STEPS)
            return executed(self._program, read_addresses(log.read_text("utf-8", "replace")))

    def calls(self, instructions: Sequence[Instruction], function: str, macs: int) -> list[Instruction]:
        """What the calls of the function execute, which has to do so many multiply-adds."""
        found = calls(instructions, find_function(self._program, function, instructions))
        check_products(found, macs)
        return found


def _cost(instructions: Sequence[Instruction], core: Core) -> Cost:
    command = [_tool("llvm-mca", "llvm-22"), "-mtriple=aarch64", f"-mcpu={core.mcpu}", f"-iterations={PASSES}"]
    command += ["-mattr=+sve,+i8mm,+dotprod,+fullfp16", "-resource-pressure=false", "-instruction-info=false"]
    command += [f"-dispatch={core.dispatch}"] if core.dispatch else []
    return Cost(len(instructions), total_cycles(run(command, text_in=as_source(instructions)), PASSES))


def _tool(name: str, package: str, other: str = "") -> str:
    found = shutil.which(f"{name}-22") or shutil.which(name) or shutil.which(other or name)
    if found is None:
        raise ToolFailed(f"{name} is not installed; Debian: apt install {package}")
    return found


def one_row(program: Emulated, core: Core, kernel: str, *group: str) -> Cost:
    """The kernel on one row and OUTPUTS outputs: the first tile, with what is done once a row, and the others."""
    first, both = (
        _cost(program.calls(program.run(kernel, "1", str(n), str(DEPTH), *group), kernel, n * DEPTH), core)
        for n in (TILE, 2 * TILE)
    )
    return first.plus(both.minus(first).times(OUTPUTS // TILE - 1))


def our_decode(program: Emulated, core: Core) -> Iterator[Modelled]:
    """Our kernels of one row."""
    for scheme in SCHEMES:
        weights, _, group = scheme.partition("g")
        cost = one_row(program, core, f"gemm_q8_{weights}_f32_1x16x32_{core.isa}", group)
        bar = _DECODE_BARS.get((core, scheme))
        yield cost.modelled("decode", f"edgekit {scheme}", core, OUTPUTS * DEPTH, bar)


def our_prefill(program: Emulated, core: Core) -> Iterator[Modelled]:
    """Our tiles of 4 rows and 32 outputs; then all rows of a prompt, with the unpacking that they share."""
    tile_name = "NarrowSums, 4ul" if core.tile_isa == "neon" else "multiply_rows<4ul"
    macs = _TILE_ROWS * _TILE_OUTPUTS * DEPTH
    for scheme in ("q4g128", "q3g128", "q2g128"):
        weights, _, group = scheme.partition("g")
        kernel = f"gemm_q8_{weights}_f32_{_TILE_ROWS}x16x32_{core.tile_isa}"
        everything = program.run(kernel, str(_TILE_ROWS), str(_TILE_OUTPUTS), str(DEPTH), group)
        whole = program.calls(everything, kernel, macs)
        tile = _cost(program.calls(whole, tile_name, macs), core)
        if scheme == "q4g128":  # the tile is the same for all three: weights are bytes by then
            yield tile.modelled("prefill", "edgekit tile", core, macs, _TILE_BARS.get(core))
        times = ROWS // _TILE_ROWS
        cost = _cost(whole, core).plus(tile.times(times - 1))
        yield cost.modelled("prefill", f"edgekit {scheme}, {ROWS} rows", core, macs * times)


def llama(program: Emulated, core: Core) -> Iterator[Modelled]:
    """llama.cpp's kernels that it would run on the core: products of rows, and of interleaved Q4_0."""
    for name, label in _LLAMA.items():
        cost = one_row(program, core, f"ggml_vec_dot_{name}")
        yield cost.modelled("decode", f"llama.cpp {label} vec_dot", core, OUTPUTS * DEPTH)
    if core is not A72:
        layout = "4x8" if core.has_i8mm else "4x4"
        cost = one_row(program, core, f"ggml_gemv_q4_0_{layout}_q8_0")
        yield cost.modelled("decode", f"llama.cpp Q4_0 {layout} gemv", core, OUTPUTS * DEPTH)
        kernel, rows = f"ggml_gemm_q4_0_{layout}_q8_0", 16
        macs = rows * TILE * DEPTH
        cost = _cost(program.calls(program.run(kernel, str(rows), str(TILE), str(DEPTH)), kernel, macs), core)
        yield cost.modelled("prefill", f"llama.cpp Q4_0 {layout} gemm", core, macs)


def build_ours(work: Path) -> Emulated:
    """The kernels as they are shipped, with a program that calls them and keeps their names."""
    library = build(work, TRIPLE, "edgekit_kernels") / "kernels" / "libedgekit_kernels.a"
    file = work / "arm_once"
    _zig("c++", "-std=c++20", "-O2", f"-I{ROOT / 'kernels' / 'include'}", _HERE / "arm_once.cc", library, file)
    return Emulated(file)


def build_llama(work: Path, core: Core) -> Emulated:
    """llama.cpp's ARM kernels compiled for the core, with a program that calls them."""
    ggml = llama_cpp.find_source(work) / "ggml"
    folder = work / "llama-aarch64"
    folder.mkdir(exist_ok=True)
    file = folder / core.zig
    if not file.exists() or file.stat().st_mtime < (_HERE / "arm_once_llama.cc").stat().st_mtime:
        say(f"building llama.cpp's kernels for {core.name} ...")
        flags = [f"-mcpu={core.zig}", "-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-ffunction-sections", "-c"]
        flags += [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
        kernels = ggml / "src" / "ggml-cpu" / "arch" / "arm"
        objects = []
        for source in (kernels / "quants.c", kernels / "repack.cpp", _HERE / "arm_once_llama.cc"):
            objects.append(folder / f"{core.zig}-{source.name}.o")
            _zig("cc" if source.suffix == ".c" else "c++", *flags, source, objects[-1])
        # Linked for no CPU: zig builds its C and C++ libraries, which takes minutes, for each that it is given.
        _zig("c++", "-Wl,--gc-sections", *objects, file)
    return Emulated(file)


def _zig(compiler: str, *words: str | Path) -> None:
    """Compiles or links; the last word is the file to write."""
    command = [sys.executable, "-m", "ziglang", compiler, "-target", TRIPLE, "-static"]
    run([*command, *words[:-1], "-o", words[-1]])


def model_all(work: Path) -> Iterator[Modelled]:
    program = build_ours(work)
    for core in CORES:
        say(f"{core.name} ...")
        yield from our_decode(program, core)
        yield from our_prefill(program, core)
        yield from llama(build_llama(work, core), core)


def tables(rows: list[Modelled]) -> str:
    """Markdown, labelled for what it is."""
    parts = [
        f"Modelled, not measured: a lower bound on cycles (llvm-mca 22, perfect first cache); edgekit {commit()}. "
        f"k = {DEPTH}; one row: the whole kernel as executed, {OUTPUTS} outputs; tiles: what they execute themselves."
    ]
    for kind, unit in (("decode", "32 weights, one row"), ("prefill", "32 multiply-adds, several rows")):
        cells = [
            [row.core, row.label, f"{row.instructions:.2f}", f"{row.cycles:.2f}", row.verdict]
            for row in rows
            if row.kind == kind
        ]
        parts.append(markdown_table(["core", "loop", f"instructions for {unit}", "cycles", "bar"], cells))
    return "\n\n".join(parts)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for builds; kept.")
@click.option("-o", "output", type=click.Choice(["md", "json"]), default="md", show_default=True)
@click.option("--write", is_flag=True, help="Put the tables into RESULTS.md, too.")
def main(work: Path, output: str, write: bool) -> None:
    """Model the ARM loops of edgekit and of llama.cpp with llvm-mca.

    Needs edgekit installed with its extra `test`, qemu-aarch64 (apt install qemu-user-static), and LLVM 22 (llvm-22).
    """
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        require(["ziglang", "edgekit._kernels"], {"cmake": ON_PATH, "ninja": ON_PATH})
        rows = list(model_all(work))
        if write:
            RESULTS.write_text(replace_place(RESULTS.read_text("utf-8"), "arm", tables(rows)), "utf-8")
    except (ToolFailed, NotExecuted, NoSuchPlace) as error:
        raise click.ClickException(str(error)) from error
    print(json.dumps([asdict(row) for row in rows], indent=1) if output == "json" else tables(rows))


if __name__ == "__main__":
    main()
