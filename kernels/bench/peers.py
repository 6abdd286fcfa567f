"""Time edgekit beside other runtimes on the same shapes, alternating, and print the ratios with their spread.

Weights are random: speed does not depend on their values. Everything is built and written under --work, once:
llama.cpp natively from its Python source package, an environment of its own for ExecuTorch, edgekit's programs from
this source tree, bundles by the package edgekit.

    python kernels/bench/peers.py --work /tmp/peers

needs a C++ compiler and edgekit with its extra `test`. Everything takes 9 GB under --work and
half an hour, the second time twenty minutes.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click
from evidence import engines, executorch_peer, llama_cpp, models, onnxruntime_peer
from evidence.machine import facts, load
from evidence.progress import ON_PATH, ToolFailed, require, say
from evidence.samples import Comparison
from evidence.tables import NoSuchPlace, as_json, comparison_table, replace_place

PARTS: Final = ("speed", "depth", "busy", "engines", "onnxruntime", "executorch")
RESULTS: Final = Path(__file__).with_name("RESULTS.md")
_TITLES: Final = {
    "speed": "Whole models beside llama.cpp",
    "depth": "A long context",
    "busy": "Beside another busy process",
    "engines": "In other runtimes",
    "onnxruntime": "Beside ONNX Runtime",
    "executorch": "Beside ExecuTorch",
}
_PRODUCTS: Final = (
    "Products of one row read their weights from memory: 256 MiB of copies in turn, for both; of 256 rows there is one "
    "copy. The time of a peer's operator has its quantization of activations and its barrier in it, that of our kernel "
    "alone has neither, so short products flatter it; whole models are the fair comparison."
)
_NOTES: Final = {
    "speed": (
        "The ceiling is what as many threads read from memory right after decoding in edgekit's run of the pair; it "
        "moves with what else the machine does. A share above 1: a part of the weights came from a cache. llama.cpp "
        "with -fa 0."
    ),
    "depth": "The share of the speed that is left. llama.cpp with the better of -fa 0 and 1 at each depth.",
    "busy": "The share of the speed that is left.",
    "engines": (
        "The same codes in all, with a context of 1024, run by `edgekit bench`. Beside the native program: what "
        "hosting edgekit's kernels costs; beside the runtime's own kernels: what they buy. Of a prefill edgekit's "
        "compute the last token's logits, the runtime's own model those of all."
    ),
    "onnxruntime": _PRODUCTS,
    "executorch": _PRODUCTS,
}


def measure(part: str, work: Path, threads: int, rounds: int, peers: models.Peers) -> Iterable[Comparison]:
    match part:
        case "speed":
            return (row for pair in models.PAIRS for row in models.speed(peers, pair, rounds))
        case "depth":
            return models.depth(peers, min(rounds, 3))
        case "busy":
            return models.busy(peers, min(rounds, 3))
        case "engines":
            return engines.compare(peers.programs, threads, rounds)
        case "onnxruntime":
            return onnxruntime_peer.compare(peers.programs, threads, min(rounds, 3))
        case _:
            return executorch_peer.compare(peers.programs, work, threads, min(rounds, 3))


def describe(table: dict[str, object]) -> str:
    return (
        f"{table['date']}, {table['cpu']}, {table['system']}; edgekit {table['commit']}, {llama_cpp.PACKAGE}; "
        f"{table['threads']} threads, {table['rounds']} alternating pairs (3 where one takes long), median (lowest to "
        f"highest); load average {table['load_before']} before, {table['load_after']} after"
    )


def section(part: str, table: dict[str, object], rows: list[Comparison]) -> str:
    """Markdown of a part."""
    return f"{describe(table)}.\n{_NOTES[part]}\n\n{comparison_table(rows)}"


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for builds and models; kept.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Parts to measure. Default: all.")
@click.option("-t", "threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("-r", "rounds", type=click.IntRange(1), default=5, show_default=True, help="Pairs of runs.")
@click.option("-o", "output", type=click.Choice(["md", "json"]), default="md", show_default=True)
@click.option("--write", is_flag=True, help="Put the tables into RESULTS.md, too.")
def main(work: Path, only: tuple[str, ...], threads: int, rounds: int, output: str, write: bool) -> None:
    """Time edgekit beside llama.cpp, ONNX Runtime and ExecuTorch on the same shapes, in turn.

    Needs a C++ compiler and edgekit installed with its extra `test`, and writes 9 GB under --work.
    """
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    table: dict[str, object] = facts() | {"threads": threads, "rounds": rounds}
    found: dict[str, list[Comparison]] = {}
    failed = []
    try:
        require(["gguf", "ziglang", "edgekit._kernels"], {"cmake": ON_PATH, "ninja": ON_PATH, "c++": "apt install g++"})
        peers = models.Peers(work, threads)
        peers.prepare(only)
        table["load_before"] = load()
        for part in (part for part in PARTS if part in only):
            try:
                found[part] = list(measure(part, work, threads, rounds, peers))
            except ToolFailed as error:
                failed.append(part)
                say(f"left out: {part}: {error}")
        table["load_after"] = load()
        made = {part: section(part, table, rows) for part, rows in found.items()}
        if write:
            document = RESULTS.read_text("utf-8")
            for part, text in made.items():
                document = replace_place(document, part, text)
            RESULTS.write_text(document, "utf-8")
    except (ToolFailed, NoSuchPlace) as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        print(as_json(table, [row for rows in found.values() for row in rows]))
    else:
        print("\n\n".join(f"## {_TITLES[part]}\n\n{text}" for part, text in made.items()))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
