"""Modelled cycles per 32 weights of the ARM kernels, and of llama.cpp's built from source beside them.

llvm-mca counts one pass of a kernel's loop over groups, the end of the group included, as if everything were in the
first cache: a lower bound on cycles, good for comparing loops of one style. No ARM machine is involved.

    python kernels/bench/arm_cycles.py --work /tmp/peers

needs cmake, ninja, the package ziglang, and llvm-mca and llvm-objdump of LLVM 22 (Debian: llvm-22).
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
from evidence import llama_cpp
from evidence.loops import Instruction, LoopNotFound, as_source, functions, one_pass, total_cycles
from evidence.machine import commit
from evidence.native import build
from evidence.progress import ToolFailed, run
from evidence.tables import NoSuchPlace, markdown_table, replace_place

RESULTS: Final = Path(__file__).with_name("RESULTS.md")
TRIPLE: Final = "aarch64-linux-musl"
PASSES: Final = 50


@dataclass(frozen=True, slots=True)
class Core:
    """A core as LLVM models it. Decode widths of LLVM up to 22 are too wide (issue 136374), so `dispatch` is given.

    The models of Cortex-A76, A77 and A78 are those of the A57 up to LLVM 22; Neoverse N1 is the A76's sister.
    """

    name: str
    mcpu: str
    dispatch: int = 0  # 0: the model's own


A72: Final = Core("Cortex-A72", "cortex-a72")
A76: Final = Core("Cortex-A76", "neoverse-n1", 4)
A710: Final = Core("Cortex-A710", "neoverse-n2", 5)
X4: Final = Core("Cortex-X4", "neoverse-v2", 8)


@dataclass(frozen=True, slots=True)
class Loop:
    """A function whose loop over groups does `macs` multiply-adds a pass, and the cycles a core may take for 32."""

    label: str
    function: str  # how its demangled name begins, or what it contains
    macs: int
    bars: tuple[tuple[Core, float], ...]
    cores: tuple[Core, ...]


@dataclass(frozen=True, slots=True)
class Modelled:
    """Instructions and cycles for 32 weights, or for 32 multiply-adds of a tile of several rows."""

    kind: str
    label: str
    core: str
    instructions: float
    cycles: float
    bar: float | None

    @property
    def verdict(self) -> str:
        return "-" if self.bar is None else f"<= {self.bar:g}: {'met' if self.cycles <= self.bar else 'NOT met'}"


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
_SCHEMES: Final = ("q8g128", "q4g128", "q3g128", "q2g128", "q2g64", "t2g128")


def decode_loops(isa: str, cores: tuple[Core, ...]) -> Iterator[tuple[Path, Loop]]:
    """Our kernels of one row: a tile of 16 outputs, group by group."""
    for scheme in _SCHEMES:
        weights, _, group = scheme.partition("g")
        bars = tuple((core, bar) for core in cores if (bar := _DECODE_BARS.get((core, scheme))) is not None)
        loop = Loop(f"edgekit {scheme}, {isa}", f"gemm_q8_{weights}_f32_1x16x32_{isa}", 16 * int(group), bars, cores)
        yield Path(f"edgekit_isa_{isa}.dir/{isa}/gemm_q8_{weights}_f32.cc.o"), loop


def prefill_loops() -> Iterator[tuple[Path, Loop]]:
    """Our tiles of 4 rows and 16 outputs over a group of 128; weights are bytes by then, whatever they were."""
    macs = 4 * 16 * 128
    for isa, function, core, bar in (
        ("neon", "NarrowSums, 4ul", A72, None),
        ("neon_dotprod", "multiply_rows<4ul>", A76, 1.1),
        ("neon_i8mm", "multiply_rows<4ul>", A710, 0.6),
        ("neon_i8mm", "multiply_rows<4ul>", X4, None),
    ):
        bars = () if bar is None else ((core, bar),)
        yield Path(f"edgekit_isa_{isa}.dir/{isa}/prefill.cc.o"), Loop(f"edgekit, {isa}", function, macs, bars, (core,))


def peer_loops(kind: str, core: Core) -> Iterator[tuple[str, Loop]]:
    """llama.cpp's: the source file under ggml-cpu/arch/arm, and the loop over blocks in it."""
    dot = [("q4_0_q8_0", "Q4_0", 64), ("q3_K", "Q3_K", 256), ("q2_K", "Q2_K", 256), ("tq2_0", "TQ2_0", 256)]
    if kind == "decode":
        for name, label, macs in dot:
            yield "quants.c", Loop(f"llama.cpp {label} vec_dot", f"ggml_vec_dot_{name}", macs, (), (core,))
        if core is not A72:
            yield "repack.cpp", Loop("llama.cpp Q4_0 4x4 gemv", "ggml_gemv_q4_0_4x4_q8_0", 128, (), (core,))
    elif core is not A72:
        yield "repack.cpp", Loop("llama.cpp Q4_0 4x4 gemm", "ggml_gemm_q4_0_4x4_q8_0", 2048, (), (core,))


def disassemble(file: Path) -> dict[str, list[Instruction]]:
    command: list[str | Path] = [_tool("llvm-objdump"), "-d", "--no-show-raw-insn", "-C"]
    return functions(run([*command, "--mattr=+dotprod,+i8mm,+fullfp16", file]))


def model(kind: str, loop: Loop, found: dict[str, list[Instruction]]) -> list[Modelled]:
    """The loop on each of its cores.

    Raises:
        ToolFailed: there is no such function, or no such loop in it.
    """
    named = [code for name, code in found.items() if loop.function in name]
    if len(named) != 1:
        raise ToolFailed(f"{loop.label}: {len(named)} functions are called {loop.function}")
    try:
        texts = one_pass(named[0], loop.macs)
    except LoopNotFound as error:
        raise ToolFailed(f"{loop.label}: {error}") from error
    share = loop.macs / 32
    return [
        Modelled(
            kind, loop.label, core.name, len(texts) / share, _cycles(texts, core) / share, dict(loop.bars).get(core)
        )
        for core in loop.cores
    ]


def _cycles(texts: list[str], core: Core) -> float:
    command = [_tool("llvm-mca"), "-mtriple=aarch64", f"-mcpu={core.mcpu}", f"-iterations={PASSES}"]
    command += [f"-dispatch={core.dispatch}"] if core.dispatch else []
    return total_cycles(run(command, text_in=as_source(texts)), PASSES)


def _tool(name: str) -> str:
    found = shutil.which(f"{name}-22") or shutil.which(name)
    if found is None:
        raise ToolFailed(f"{name} is not installed; Debian: apt install llvm-22")
    return found


def ours(work: Path) -> Iterator[Modelled]:
    objects = build(work, TRIPLE, "edgekit_kernels") / "kernels" / "gemm" / "CMakeFiles"
    for isa, cores in (("neon", (A72,)), ("neon_dotprod", (A76, A710, X4))):
        for file, loop in decode_loops(isa, cores):
            yield from model("decode", loop, disassemble(objects / file))
    for file, loop in prefill_loops():
        yield from model("prefill", loop, disassemble(objects / file))


def theirs(work: Path) -> Iterator[Modelled]:
    folder = work / "llama-aarch64"
    folder.mkdir(exist_ok=True)
    for core, mcpu in ((A72, "cortex_a72"), (A76, "cortex_a76")):
        for kind in ("decode", "prefill"):
            for source, loop in peer_loops(kind, core):
                yield from model(kind, loop, disassemble(_compile(work, folder, source, mcpu)))


def _compile(work: Path, folder: Path, source: str, mcpu: str) -> Path:
    """llama.cpp's file compiled as for this core, unless it is there."""
    file = folder / f"{mcpu}-{source}.o"
    if not file.exists():
        ggml = llama_cpp.find_source(work) / "ggml"
        compiler = "cc" if source.endswith(".c") else "c++"
        command: list[str | Path] = [sys.executable, "-m", "ziglang", compiler, "-target", TRIPLE, f"-mcpu={mcpu}"]
        command += ["-O3", "-DNDEBUG", "-D_GNU_SOURCE"]
        command += [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
        run([*command, "-c", ggml / "src" / "ggml-cpu" / "arch" / "arm" / source, "-o", file])
    return file


def tables(rows: list[Modelled]) -> str:
    """Markdown, labelled for what it is."""
    parts = [f"Modelled, not measured: a lower bound on cycles (llvm-mca 22, perfect first cache); edgekit {commit()}."]
    for kind, unit in (("decode", "32 weights, one row"), ("prefill", "32 multiply-adds, tiles of several rows")):
        cells = [
            [row.core, row.label, f"{row.instructions:.2f}", f"{row.cycles:.2f}", row.verdict]
            for row in sorted((row for row in rows if row.kind == kind), key=lambda row: row.core)
        ]
        headings = ["core", "loop", f"instructions for {unit}", "cycles", "bar"]
        parts.append(markdown_table(headings, cells))
    return "\n\n".join(parts)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for builds; kept.")
@click.option("-o", "output", type=click.Choice(["md", "json"]), default="md", show_default=True)
@click.option("--write", is_flag=True, help="Put the tables into RESULTS.md, too.")
def main(work: Path, output: str, write: bool) -> None:
    """Model the ARM loops of edgekit and of llama.cpp with llvm-mca."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        rows = [*ours(work), *theirs(work)]
        if write:
            RESULTS.write_text(replace_place(RESULTS.read_text("utf-8"), "arm", tables(rows)), "utf-8")
    except (ToolFailed, NoSuchPlace) as error:
        raise click.ClickException(str(error)) from error
    print(json.dumps([asdict(row) for row in rows], indent=1) if output == "json" else tables(rows))


if __name__ == "__main__":
    main()
